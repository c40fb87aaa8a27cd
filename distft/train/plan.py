"""The plan of a run, in ten lines for people."""

from pathlib import Path

from distft.config.schema import engine_for
from distft.data.loader import Loader
from distft.data.prepare import Prepared
from distft.model.load import Loaded
from distft.session.session import Session
from distft.tracking.seam import Lines


def describe_run(session: Session, prepared: Prepared, loader: Loader, folder: Path, checkpoint: Path | None) -> Lines:
    """What will be trained, on what, how and where."""
    config, loaded, group = session.config, session.loaded, session.group
    data, optim, train, ranks = config.data, config.optim, prepared.train, group.ranks
    compute = _plain(loaded)
    base = f"NF4 over {config.model.dtype}" if config.model.quantization == "nf4" else config.model.dtype
    if config.adapter.traits.every_weight:
        base = "float32"
    fill = train.num_tokens / (len(loader.row_tokens) * data.max_length)
    held_out = f"{prepared.eval.num_documents:,} documents held out" if prepared.eval else "nothing held out"
    dropped = sum(train.counts.dropped.values())
    replayed = f", {train.counts.replayed:,} of them replayed" if train.counts.replayed else ""
    chosen = engine_for(config.engine, ranks.world_size)
    engine = chosen.name if chosen == config.engine else f"{chosen.name} ({config.engine.name})"
    taught = loaded.teacher
    return [
        ("model", f"{loaded.identity['source']}, kept as {base}, computes in {compute}"),
        *([("teacher", f"{taught.identity['source']}, frozen, computes in {_plain(taught)}")] if taught else []),
        ("trains", loaded.trainable),
        ("engine", f"{engine} on {ranks.world_size} x {group.device.type}"),
        (
            "batch",
            f"{data.global_batch} rows a step = {data.micro_batch} x {loader.accumulation} accumulated x "
            f"{ranks.world_size} ranks, {data.max_length} tokens a row",
        ),
        (
            "data",
            f"{train.num_documents:,} documents{replayed}, {train.num_tokens:,} tokens, "
            f"{train.num_targets:,} trained on; {held_out}; {dropped} dropped, "
            f"{train.counts.truncated} truncated, {train.counts.duplicates} duplicates",
        ),
        (
            "rows",
            f"{len(loader.row_tokens):,} rows, {'packed' if data.packing else 'one document each'}, {fill:.1%} full",
        ),
        ("steps", f"{loader.num_steps:,} steps = {loader.epoch(loader.num_steps):.2f} epochs"),
        ("optimizer", f"{optim.name}, lr {optim.lr:g}, {optim.schedule} schedule, clip {optim.max_grad_norm}"),
        ("start", f"from {checkpoint.name}" if checkpoint else "fresh"),
        ("files", str(folder)),
    ]


def _plain(loaded: Loaded) -> str:
    return str(loaded.compute_dtype).removeprefix("torch.")

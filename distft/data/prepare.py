"""Tokenise once into a memory-mapped cache: the data as training reads it."""

import errno
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from distft.config import schema
from distft.data import corpus, source, tokenise
from distft.data.corpus import DOCUMENT, Corpus
from distft.data.document import Layout, Reader, Seen, question_hash
from distft.data.source import Part, Resolved
from distft.data.splits import Written, write_splits
from distft.data.tokenise import ROWS_A_CHUNK, SplitRule
from distft.errors import ConfigError
from distft.runtime.files import whole_folder, write_whole

Poll = Callable[[], None]

OPTIONS = ("format", "max_length", "too_long", "deduplicate", "eval_fraction")
LARGE_FILE = 1 << 26


@dataclass(frozen=True)
class Prepared:
    train: Corpus
    eval: Corpus | None
    prompts: list[list[dict]]
    """A few held-out chats, always the same ones, up to the first reply; that last message is the reference."""
    facts: dict[str, Any]
    """What the task's reader learnt of the data: label names, for example."""
    folder: Path
    """Where the cache is."""

    @property
    def digest(self) -> str:
        """Identity of both splits."""
        return self.train.digest if self.eval is None else f"{self.train.digest} {self.eval.digest}"


def prepare(data: schema.Data, reader: Reader, *, poll: Poll = lambda: None) -> Prepared:
    """The tokenised data of a run, from the cache if it is there.

    Every rank calls this, outside any collective: the first makes the cache under a file lock, the others wait for it.
    `poll` is called while waiting and may raise. Raises ConfigError with every problem of the data.
    """
    cache = _cache_folder(data)
    train, problems = source.resolve(data.train, "data.train", lambda file: _content_digest(file, cache))
    held_out, more = source.resolve(data.eval or [], "data.eval", lambda file: _content_digest(file, cache))
    problems += more if data.eval is not None else []
    replay, more = source.resolve(data.replay or [], "data.replay", lambda file: _content_digest(file, cache))
    problems += more if data.replay is not None else []
    folder = cache / cache_key(data, reader, train, held_out, replay)
    if problems or not folder.exists():
        try:
            with _locked(folder.with_suffix(".lock"), poll):
                if problems or not folder.exists():
                    _make(folder, data, reader, [train, replay, held_out], problems, poll)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise _unwritable(data, error) from error
            raise
    learnt = json.loads((folder / "learnt.json").read_text(encoding="utf-8"))
    layout = Layout(**learnt["layout"])
    documents = corpus.load_split(folder, "train", layout)
    assert documents is not None
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return Prepared(documents, corpus.load_split(folder, "eval", layout), prompts, learnt["facts"], folder)


def alone(data: schema.Data, path: str) -> schema.Data:
    """The options of `data` for one dataset that is held out as a whole."""
    changes = {"train": path, "eval": path, "eval_fraction": 0.0, "replay": None, "replay_share": 0.1}
    return data.model_copy(update=changes)


def cache_key(
    data: schema.Data, reader: Reader, train: list[Resolved], held_out: list[Resolved], replay: list[Resolved]
) -> str:
    """sha256 of all that the tokenised data depends on."""
    # What tokenises, and the reader with all that stands beside it: readers of labels and pairs share files there.
    folders = Path(__file__).parent, Path(inspect.getfile(type(reader))).parent
    code = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    tokenizer = reader.tokenizer
    ingredients = {
        "code": [file.read_text(encoding="utf-8") for file in code],
        "tokenizer": [tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map],
        "reader": [type(reader).__name__, reader.options()],
        "options": {name: getattr(data, name) for name in OPTIONS},
        "train": [(each.digest, each.source.weight, each.source.format) for each in train],
        "eval": [(each.digest, each.source.format) for each in held_out],
        "replay": [data.replay_share, *((each.digest, each.source.weight, each.source.format) for each in replay)],
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _cache_folder(data: schema.Data) -> Path:
    folder = Path(data.cache_dir).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # holds the training data: nobody else's business
    except OSError as error:
        raise _unwritable(data, error) from error
    return folder


def _unwritable(data: schema.Data, error: OSError) -> ConfigError:
    message = f"data.cache_dir: folder must be writable and have room, got {data.cache_dir!r} ({error.strerror})"
    return ConfigError(f"{message}; set data.cache_dir to another one")


@contextmanager
def _locked(path: Path, poll: Poll) -> Iterator[None]:
    lock = filelock.FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0.5, poll_interval=0.1)
            break
        except filelock.Timeout:
            poll()
    try:
        yield
    finally:
        lock.release()


def _content_digest(file: Path, cache: Path) -> str:
    """sha256 of a file's content; of a large one it is remembered until the file changes."""
    stat = file.stat()
    if stat.st_size < LARGE_FILE:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    identity = f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"
    memory = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.digest"
    if memory.exists() and len(known := memory.read_text(encoding="ascii")) == 64:
        return known
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    write_whole(memory, digest)
    return digest


def _make(
    folder: Path,
    data: schema.Data,
    reader: Reader,
    sources: list[list[Resolved]],
    problems: list[str],
    poll: Poll,
) -> None:
    """Makes the cache: complete, or not there. The caller holds its lock.

    `sources`: new data, older data that is replayed, held-out data.
    """
    with whole_folder(folder, alone=True) as building:
        scratch = building / "scratch"
        opened = [source.open_parts(each, data.format, reader.formats, scratch) for each in sources]
        if faults := problems + [fault for _, more in opened for fault in more]:
            raise ConfigError(faults)
        (new, _), (replayed, _), (eval_parts, _) = opened
        rule = SplitRule(len(new) + len(replayed), data.eval_fraction, len(replayed))
        parts = [*new, *replayed, *eval_parts]
        reader = reader.learn(_rows(parts, reader, rule, poll))
        learnt = {"layout": vars(reader.layout), "facts": reader.facts}
        (building / "learnt.json").write_text(json.dumps(learnt, ensure_ascii=False, indent=1), encoding="utf-8")
        written = _write_documents(building, parts, reader, data, rule, poll)
        write_splits(building, parts, rule, written, data, reader)
        shutil.rmtree(scratch, ignore_errors=True)


def _rows(parts: list[Part], reader: Reader, rule: SplitRule, poll: Poll) -> Iterator[Seen]:
    """Every row that can be read, in order; nothing is read until it is asked for."""
    for number, part in enumerate(parts):
        for start in range(0, len(part.table), ROWS_A_CHUNK):
            poll()
            for row in part.table.read(start, min(start + ROWS_A_CHUNK, len(part.table))):
                if isinstance(row, dict):
                    prompt = question_hash(reader.question(row, part.format))
                    yield Seen(row, part.format, rule.held_out(number, prompt))


def _write_documents(
    folder: Path, parts: list[Part], reader: Reader, data: schema.Data, rule: SplitRule, poll: Poll
) -> Written:
    """The tokens and labels of all rows that are kept, one after the other."""
    rows, lengths, targets, segments, reasons = [], [], [], [], {"": 0}
    digests = hashlib.sha256(), hashlib.sha256()
    malformed: list[list[str]] = [[] for _ in parts]
    with (
        (folder / "ids.bin").open("wb") as ids,
        (folder / "labels.bin").open("wb") as labels,
        (folder / "references.bin").open("wb") as references,
    ):
        for chunk in tokenise.chunks(parts, reader, data, rule, poll):
            number = chunk.rows["part"][0]
            for row, problem in chunk.problems:
                malformed[number].append(f"{parts[number].key}: {parts[number].table.place(row)}: {problem}")
            for file, digest, array in zip((ids, labels), digests, (chunk.ids, chunk.labels), strict=True):
                file.write(array.tobytes())
                digest.update(array.tobytes())
            references.write(chunk.references)
            numbers = [reasons.setdefault(reason, len(reasons)) for reason in chunk.reasons]
            chunk.rows["reason"] = np.array(numbers)[chunk.rows["reason"]]
            rows.append(chunk.rows)
            lengths.append(chunk.lengths)
            targets.append(chunk.targets)
            segments.append(chunk.segments)
    if any(malformed):
        raise ConfigError(
            sentence
            for part, found in zip(parts, malformed, strict=True)
            for sentence in [*found[:5], *([f"{part.key}: {len(found) - 5} more such rows"] if len(found) > 5 else [])]
        )
    documents = np.zeros(sum(map(len, lengths)), DOCUMENT)
    documents["length"], documents["targets"] = np.concatenate(lengths), np.concatenate(targets)
    documents["start"] = np.cumsum(documents["length"]) - documents["length"]
    np.save(folder / "documents.npy", documents)
    if reader.layout.segments > 1:
        np.save(folder / "segments.npy", np.concatenate([part for part in segments if len(part)]))
    every = np.concatenate(rows)
    np.save(folder / "rows.npy", np.repeat(np.arange(len(every)), every["documents"]))
    np.save(folder / "references.npy", np.concatenate([[0], np.cumsum(every["reference"])]))
    return Written(every, documents, list(reasons), " ".join(digest.hexdigest() for digest in digests))

"""Kill -9 at seeded instants, also amid a save, then the same command: losses, rates and adapter have the same bits."""

import random

import pytest

from tests.resume import runs
from tests.resume.commands import COUNTED, count_calls
from tests.test_layers import graph

WORLD = {"single": 1, "fsdp": 2, "zero2": 2, "zero3": 2}
BASES = {"lora": [], "qlora": ["model.quantization=nf4"]}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("engine", WORLD)
def test_losses_rates_and_adapter_are_the_same_bits(commands, tiny, tmp_path, engine, base):
    changes = [f"engine={engine}", *BASES[base]]
    calls = tmp_path / "calls"
    whole = commands.run(*tiny(tmp_path / "whole", *changes), world_size=WORLD[engine], hook=(count_calls, str(calls)))
    assert whole.code == 0, whole.output
    instants, draw = int(calls.read_text()), random.Random(f"{engine} {base}")

    again, anyone = tiny(tmp_path / "killed", *changes), WORLD[engine] - 1
    kills = [
        (draw.randint(0, anyone), draw.randint(instants // 3, instants * 2 // 3), ""),
        (0, draw.randint(1, 4), "manifest_entry"),
        (draw.randint(0, anyone), draw.randint(1, instants // 3), ""),
    ]
    for rank, at, function in kills if base == "lora" else kills[:2]:
        hook = (count_calls, str(calls), rank, at, function)
        ended = commands.run(*again, world_size=WORLD[engine], hook=hook)
        assert -9 in ended.codes, f"call {at} of {function or 'any function'} did not come:\n{ended.output}"
    last = commands.run(*again, world_size=WORLD[engine])
    assert last.code == 0, last.output

    assert runs.rows(tmp_path / "killed" / "run") == runs.rows(tmp_path / "whole" / "run")
    assert [row["step"] for row in runs.rows(tmp_path / "killed" / "run", "train")] == [1, 2, 3, 4, 5, 6]
    assert runs.adapter(tmp_path / "killed" / "run") == runs.adapter(tmp_path / "whole" / "run")
    assert not list((tmp_path / "killed" / "run" / "checkpoints").glob(".*")), "the orphans of dead saves are swept"


def test_a_kill_may_fall_into_every_module_that_a_save_goes_through():
    """A module that was renamed would leave its calls out in silence, a new one would never be in."""
    modules = graph()
    assert set(COUNTED) <= modules.keys()
    saves = {name for name in modules["distft.run.checkpoints"] if name.startswith(("distft.run.", "distft.runtime."))}
    assert {"distft.run.checkpoints", *saves} - set(COUNTED) == set()

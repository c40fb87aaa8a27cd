import subprocess
import sys

import pytest

LIBRARIES = """
import logging, sys, warnings
from pathlib import Path
from distft.runtime import log
log.start(int(sys.argv[2])); log.to_folder(Path(sys.argv[1]), int(sys.argv[2]))

deepspeed = logging.getLogger("DeepSpeed")       # what deepspeed.utils.logging does when it is imported
deepspeed.propagate = False
deepspeed.setLevel(logging.INFO)
deepspeed.addHandler(logging.StreamHandler(sys.stdout))
deepspeed.info("deepspeed says")
from transformers.utils import logging as transformers_logging
transformers_logging.get_logger("transformers.x").warning("transformers warns")
logging.getLogger("peft.x").error("peft fails")
logging.getLogger("wandb").error("wandb fails")  # the tracker reports that
warnings.warn("a warning")
ours = logging.getLogger("distft.train.loop")
ours.debug("our detail"), ours.info("our news"), ours.warning("our %s", "warning")
try:
    raise KeyError("lost")
except KeyError:
    ours.exception("our failure")
raise ValueError("uncaught one")
"""

EVERYTHING = [
    "INFO    DeepSpeed: deepspeed says",
    "WARNING transformers.x: transformers warns",
    "ERROR   peft.x: peft fails",
    "ERROR   wandb: wandb fails",
    "a warning",
    "DEBUG   distft.train.loop: our detail",
    "INFO    distft.train.loop: our news",
    "WARNING distft.train.loop: our warning",
    "KeyError: 'lost'",
    "ValueError: uncaught one",
]


@pytest.mark.parametrize(
    ("rank", "console"),
    [
        (0, ["error: peft fails", "our news", "warning: our warning", "error: our failure"]),
        (3, ["error: peft fails", "error: our failure"]),
    ],
)
def test_console_shows_ours_and_errors_while_the_file_has_everything(rank, console, tmp_path):
    command = [sys.executable, "-c", LIBRARIES, str(tmp_path), str(rank)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == ""
    shown, crash = done.stderr.split("Traceback")
    assert shown.splitlines() == console
    assert crash.endswith("ValueError: uncaught one\n")
    file = (tmp_path / "logs" / f"rank-{rank:05d}.log").read_text()
    assert [part for part in EVERYTHING if part not in file] == []


def test_log_of_a_restart_is_appended(tmp_path):
    code = "import sys; from pathlib import Path; from distft.runtime import log; import logging\n"
    code += "log.start(0)\n"
    code += "for word in ('one', 'two'): log.to_folder(Path(sys.argv[1]), 0); logging.getLogger('distft').debug(word)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    lines = (tmp_path / "logs" / "rank-00000.log").read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["one", "two", "one", "two"]

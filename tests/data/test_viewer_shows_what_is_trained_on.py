"""`python -m distft.data` shows rows as the model sees them."""

import json

from rich.console import Console

from distft.config.reading import compose
from distft.data.command import Viewer, main, show
from distft.runtime.command import exit_code


def test_supervised_tokens_stand_out_and_figures_add_up(jsonl, tmp_path):
    train = jsonl(
        *({"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(3)), {"prompt": "", "completion": ""}
    )
    argv = ["+exp=llama_lora", "data=jsonl", f"data.train={train}", "data.eval_fraction=0", "rows=1"]
    argv += [f"data.cache_dir={tmp_path / 'cache'}", "data.max_length=64", "evaluation.samples=0"]
    config, own = compose.load_with(argv, Viewer, program="distft.data")
    console = Console(force_terminal=True, color_system="standard", width=100, record=True)
    with console.capture() as capture:
        show(config, own.rows, console)
    text = capture.get()
    assert "\x1b[2m1 plus one is\x1b[0m" in text, "the prompt is dim"
    assert "\x1b[1;32m 2<|im_end|>\x1b[0m" in text, "the completion and its end are green"
    for figure in ("rows read", "dropped: no supervised token", "fill"):
        assert figure in text


def test_bad_data_exits_2_with_its_problems(tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"question": 1}))
    words = ["+exp=llama_lora", "data=jsonl", f"data.train={tmp_path / 'bad.jsonl'}", "rows=1"]
    assert exit_code(lambda: main(words)) == 2
    assert "got question" in capsys.readouterr().err

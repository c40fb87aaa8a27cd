"""Every shipped experiment finds rows to train on and rows to be measured on, in its embedded data."""

import pytest

from distft.config.reading.compose import load
from distft.config.reading.folders import conf_dir
from distft.data.prepare import prepare
from distft.model.tokenizer import load_tokenizer
from distft.task import build as tasks

EXPERIMENTS = sorted(file.stem for file in (conf_dir() / "exp").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_read_and_held_out(tmp_path_factory, name):
    cache = tmp_path_factory.getbasetemp() / "experiments"
    config = load([f"+exp={name}", f"data.cache_dir={cache}"], program="distft.train", world_size=1)
    tokenizer = load_tokenizer(config.model, config.data.chat_template)
    prepared = prepare(config.data, tasks.build(config.task).reader(tokenizer, config.data, None))
    assert prepared.train.num_targets > 100
    assert prepared.eval is not None and prepared.eval.num_documents > 10
    assert sum(prepared.train.counts.dropped.values()) < prepared.train.counts.rows / 10

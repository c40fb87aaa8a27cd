"""The same base elsewhere, in other files, or read by another version is the same; one with other values is another."""

import json

import pytest
import torch
import transformers.configuration_utils as of_configs
from safetensors.torch import load_file

from distft.config import schema
from distft.model import identity
from distft.model.architecture import CAUSAL
from distft.model.base_files import weight_files
from distft.model.hf_config import read_hf_config
from distft.run.identity import same_base
from tests.model.folders import by_transformers, change, save


def told(folder) -> dict:
    model = schema.Model(source=str(folder), dtype="float32")
    return identity.identify(model, CAUSAL.skeleton(read_hf_config(model), "sdpa"), weight_files(model))


def edit(folder, **entries) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}, indent=7))


def renamed(folder, monkeypatch):
    return folder.rename(folder.with_name("other"))


def sharded(folder, monkeypatch):
    by_transformers(folder).save_pretrained(folder.with_name("other"), max_shard_size="20KB")
    return folder.with_name("other")


def updated(folder, monkeypatch):
    monkeypatch.setattr(of_configs, "__version__", of_configs.__version__ + ".post1")
    return folder


def kept_otherwise(folder, monkeypatch):
    edit(folder, _name_or_path="/elsewhere", transformers_version="4.0", torch_dtype="float16", use_cache=False)
    return folder


@pytest.mark.parametrize("moved", [renamed, sharded, updated, kept_otherwise])
def test_the_same_base_is_known_again(tmp_path, monkeypatch, moved):
    before = told(save(tmp_path / "m"))
    assert told(moved(tmp_path / "m", monkeypatch))["digest"] == before["digest"]


@pytest.mark.parametrize("sampled", [identity.SAMPLED, 1 << 15], ids=["whole", "sampled"])
@pytest.mark.parametrize("at", [0, -1])
def test_other_values_are_another_base(tmp_path, monkeypatch, sampled, at):
    monkeypatch.setattr(identity, "SAMPLED", sampled)
    before = told(save(tmp_path))
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(tmp_path / "model.safetensors")[name]
    weight.view(-1)[at] += 1
    change(tmp_path, **{name: weight})
    assert not same_base(before, told(tmp_path))


def test_another_config_is_another_base(tmp_path):
    before = told(save(tmp_path))
    edit(tmp_path, rms_norm_eps=0.1)
    assert not same_base(before, told(tmp_path))


def test_a_digest_of_earlier_code_is_compared_with_its_own_kind(tmp_path):
    now = told(save(tmp_path / "m"))
    early = {"source": "m", "revision": None, "digest": now["earlier"]}
    assert same_base(early, now) and same_base(now, early)
    change(tmp_path / "m", **{"model.norm.weight": torch.zeros(32)})
    assert not same_base(early, told(tmp_path / "m"))


def test_teachers_are_compared_too():
    one, other = {"digest": "2:a", "teacher": {"digest": "2:b"}}, {"digest": "2:a", "teacher": {"digest": "2:c"}}
    assert same_base(one, one) and not same_base(one, other) and not same_base(one, {"digest": "2:a"})

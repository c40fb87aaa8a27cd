"""Which files, which tensors of them: what `transformers` reads is what trains, and what nobody would read is named."""

import re

import pytest
import torch

from distft.errors import ConfigError
from tests.model.folders import IDS, base, by_transformers, change, save


@torch.no_grad()
def assert_same_logits(folder) -> None:
    torch.testing.assert_close(base(folder)(IDS).logits, by_transformers(folder)(IDS).logits)


@pytest.mark.parametrize("shards_left", [True, False])
def test_one_whole_file_comes_before_an_older_index(tmp_path, shards_left):
    save(tmp_path)
    by_transformers(tmp_path).save_pretrained(tmp_path / "older", max_shard_size="20KB")
    save(tmp_path, seed=1)
    older = sorted((tmp_path / "older").glob("model*"))
    assert len(older) > 2
    for file in older if shards_left else [file for file in older if file.suffix == ".json"]:
        file.rename(tmp_path / file.name)
    assert_same_logits(tmp_path)


def test_shards_that_the_index_names_must_be_there(tmp_path):
    save(tmp_path)
    by_transformers(tmp_path).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    gone = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=f"missing {gone.name}"):
        base(tmp_path / "m")


def test_one_missing_tensor_is_one_name_as_in_the_file(tmp_path):
    save(tmp_path)
    change(tmp_path, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ConfigError, match=r"1 is missing in the file: model\.layers\.1\.mlp\.up_proj\.weight;"):
        base(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "model.embed_norm.weight"]
)
def test_a_tensor_that_the_config_does_not_announce_is_named(tmp_path, name):
    save(tmp_path)
    change(tmp_path, **{name: torch.ones(32)})
    with pytest.raises(ConfigError, match=f"1 has none: {re.escape(name)};"):
        base(tmp_path)


@pytest.mark.parametrize(
    "name", ["score.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.vision_tower.patch.weight"]
)
def test_heads_of_other_tasks_and_old_buffers_are_left_where_they_are(tmp_path, name):
    save(tmp_path)
    change(tmp_path, **{name: torch.ones(4)})
    assert_same_logits(tmp_path)


def test_a_model_cut_short_on_purpose_leaves_the_rest(tmp_path):
    save(tmp_path)
    assert len(base(tmp_path, num_hidden_layers=1).model.layers) == 1


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bert", "deepseek_v3"])
def test_a_folder_as_it_was_saved_is_read_whole(tmp_path, family):
    small = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    small |= {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    extra = small | {"num_key_value_heads": 4, "first_k_dense_replace": 1} if family == "deepseek_v3" else {}
    extra |= {"is_decoder": True} if family == "bert" else {}
    save(tmp_path, family, **extra)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_of_its_own_stays_though_the_config_ties_it(tmp_path, equal, caplog):
    save(tmp_path, tie_word_embeddings=True)
    head = by_transformers(tmp_path).lm_head.weight.detach()
    change(tmp_path, **{"lm_head.weight": head.clone() if equal else head + 1})
    assert_same_logits(tmp_path)
    assert ("they stay apart" in caplog.text) is not equal
    assert base(tmp_path).config.tie_word_embeddings is equal


def test_a_file_may_hold_the_head_in_place_of_the_embeddings(tmp_path):
    save(tmp_path, tie_word_embeddings=True)
    embeddings = by_transformers(tmp_path).lm_head.weight.detach()
    change(tmp_path, **{"lm_head.weight": embeddings.clone(), "model.embed_tokens.weight": None})
    assert_same_logits(tmp_path)

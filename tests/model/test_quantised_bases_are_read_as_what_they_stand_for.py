"""FP8, NF4 and MXFP4 folders hold the weights that their numbers stand for; other kinds are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file

from distft.config import schema
from distft.errors import ConfigError
from distft.model.load import check
from distft.model.quantize import StoredLinear
from tests.model.folders import IDS, base, by_transformers, save


def quantise(folder: Path, config: dict, into) -> Path:
    """Replaces each projection of the blocks by the tensors that `into` makes of it; leaves the rest."""
    file = folder / "model.safetensors"
    made = {}
    for name, tensor in load_file(file).items():
        made |= into(name, tensor) if "proj.weight" in name else {name: tensor}
    save_file(made, file, metadata={"format": "pt"})
    declare(folder, config)
    return folder


def declare(folder: Path, config: dict) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "quantization_config": config}))


def fp8(steps: tuple[int, int], name_of_scale: str = "{}_scale_inv"):
    """Blocks of `steps`, by loops over them; what they stand for goes to `wanted`."""
    wanted: dict[str, torch.Tensor] = {}

    def into(name, weight):
        rows, columns = (-(-size // step) for size, step in zip(weight.shape, steps, strict=True))
        codes, plain, scale = (
            torch.empty_like(weight).to(torch.float8_e4m3fn),
            weight.clone(),
            torch.empty(rows, columns),
        )
        for i in range(rows):
            for j in range(columns):
                at = slice(i * steps[0], (i + 1) * steps[0]), slice(j * steps[1], (j + 1) * steps[1])
                scale[i, j] = weight[at].abs().max() / 448
                codes[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
                plain[at] = codes[at].float() * scale[i, j]
        wanted[name] = plain
        return {name: codes, name_of_scale.format(name): scale}

    return into, wanted


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [24, 20]}


@pytest.mark.parametrize(
    ("steps", "config"),
    [
        ((24, 20), BLOCKS),
        ((999, 999), BLOCKS | {"weight_block_size": None}),
        ((1, 999), {"quant_method": "fbgemm_fp8"}),
    ],
    ids=["block", "tensor", "row"],
)
def test_fp8_weights_are_multiplied_by_their_scales(tmp_path, steps, config):
    into, wanted = fp8(steps, "{}_scale" if "fbgemm" in config["quant_method"] else "{}_scale_inv")
    model = base(quantise(save(tmp_path), config, into))
    found = dict(model.named_parameters())
    assert len(wanted) == 14
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    assert not hasattr(model.config, "quantization_config"), "what is exported is plain"


def test_fp8_experts_are_decoded_before_they_are_stacked(tmp_path):
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    into, wanted = fp8((24, 20))
    found = dict(base(quantise(save(tmp_path, "qwen3_moe", **moe), BLOCKS, into)).named_parameters())
    stacked = found["model.layers.1.mlp.experts.down_proj"]
    expected = [wanted[f"model.layers.1.mlp.experts.{i}.down_proj.weight"] for i in range(4)]
    torch.testing.assert_close(stacked, torch.stack(expected))


def test_an_fp8_weight_without_its_scale_is_named(tmp_path):
    into, _ = fp8((24, 20))
    quantise(save(tmp_path), BLOCKS, lambda name, weight: {name: into(name, weight)[name]})
    with pytest.raises(
        ConfigError, match=r"every FP8 weight must have its scale, model\.layers\.0\..*proj\.weight has"
    ):
        base(tmp_path)


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def nf4(nested: bool, storage: torch.dtype = torch.uint8):
    """As bitsandbytes saves; what it decodes itself goes to `wanted`."""
    wanted: dict[str, torch.Tensor] = {}

    def into(name, weight):
        codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
        wanted[name] = dequantize_4bit(codes, state)
        parts = {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        return {name: codes.flatten().view(storage)[:, None], **parts}

    return into, wanted


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(("nested", "storage"), [(True, torch.uint8), (False, torch.uint8), (True, torch.bfloat16)])
def test_nf4_weights_are_rounded_once(tmp_path, nested, storage, quantization):
    into, wanted = nf4(nested, storage)
    model = base(quantise(save(tmp_path), NF4, into), quantization=quantization)
    for name, value in wanted.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(layer.weight, value), name
        assert isinstance(layer, StoredLinear) is (quantization == "nf4")
    if quantization == "nf4":
        codes = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].view(torch.uint8)
        stored = model.model.layers[0].mlp.up_proj.stored
        assert codes.flatten().numpy().tobytes() in stored.numpy().tobytes()


@torch.no_grad()
def test_nf4_folders_that_transformers_writes_have_its_logits(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = save(tmp_path / "plain", intermediate_size=96)
    double = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=double).save_pretrained(tmp_path / "nf4")
    theirs = by_transformers(tmp_path / "nf4")(IDS).logits
    for quantization in ("nf4", "none"):
        torch.testing.assert_close(base(tmp_path / "nf4", quantization=quantization)(IDS).logits, theirs)


def test_mxfp4_experts_are_read_by_value(tmp_path):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 32, "head_dim": 8}
    save(tmp_path, "gpt_oss", **experts)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.experts.down_proj"
    _, inner, outer = tensors.pop(name).shape
    nibbles = torch.randint(0, 16, (2, outer, inner // 32, 32), generator=torch.Generator().manual_seed(0))
    exponents = torch.randint(120, 130, (2, outer, inner // 32), generator=torch.Generator().manual_seed(1))
    tensors[f"{name}_blocks"] = (nibbles[..., 0::2] + 16 * nibbles[..., 1::2]).to(torch.uint8)
    tensors[f"{name}_scales"] = exponents.to(torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    declare(tmp_path, {"quant_method": "mxfp4"})
    values = levels[nibbles] * 2.0 ** (exponents[..., None] - 127)
    found = dict(base(tmp_path, attention="eager").named_parameters())[name]
    assert torch.equal(found, values.reshape(2, outer, inner).transpose(1, 2))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "got gptq;"),
        ({"quant_method": "awq"}, "got awq;"),
        ({"quant_method": "compressed-tensors"}, "got compressed-tensors;"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "got bitsandbytes int8;"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "got bitsandbytes fp4;"),
        ({"quant_method": "hqq"}, "got hqq;"),
    ],
)
def test_other_kinds_are_refused_by_name_before_anything_is_written(tmp_path, config, told):
    declare(save(tmp_path), config)
    with pytest.raises(ConfigError, match=f"model.source: weights must be plain, .* {told} take the base"):
        check(schema.Model(source=str(tmp_path)), 32)
    with pytest.raises(ConfigError, match=told):
        base(tmp_path)


def test_gptq_without_a_word_in_config_json_is_known_by_its_tensors(tmp_path):
    quantise(save(tmp_path), {}, lambda name, w: {name.replace("weight", "qweight"): w.int()})
    with pytest.raises(ConfigError, match="got gptq or awq"):
        base(tmp_path)

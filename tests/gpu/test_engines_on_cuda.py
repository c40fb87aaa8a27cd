"""The engine tests on one CUDA device (`make gpu-check`): bitsandbytes' CUDA kernels, NCCL, FlashAttention."""

from collections.abc import Iterator

import engine_cases
import pytest
import torch
import torch.nn.functional as F
from ranks import RankPool

from distft.model.attention import varlen_attention

pytestmark = pytest.mark.gpu

BASES = {
    "float32": ({"dtype": "float32", "attention": "sdpa"}, 1e-5),
    "nf4": ({"dtype": "float32", "quantization": "nf4", "attention": "sdpa"}, 1e-5),
    "bfloat16": ({"dtype": "bfloat16", "compute_dtype": "bfloat16"}, 0.05),
    "nf4 in bfloat16": ({"dtype": "bfloat16", "compute_dtype": "bfloat16", "quantization": "nf4"}, 0.05),
}


@pytest.fixture(scope="module")
def gpu() -> Iterator[RankPool]:
    pool = RankPool(1, cuda=True)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def cpu(one_rank: RankPool) -> RankPool:
    return one_rank


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("engine", ["single", "fsdp", "zero2", "zero3"])
def test_gradients_are_those_of_the_cpu(gpu, cpu, engine, base):
    model, tolerance = BASES[base]
    reference = {"dtype": "float32", "quantization": model.get("quantization", "none")}
    loss, grads = cpu.run(engine_cases.gradients, engine_cases.config({"name": "single"}, model=reference))[0]
    tolerance = max(tolerance, 1e-4)  # other kernels sum in another order
    gpu_loss, gpu_grads = gpu.run(engine_cases.gradients, engine_cases.config({"name": engine}, model=model))[0]
    assert gpu_loss == pytest.approx(loss, rel=tolerance)
    for name, gradient in grads.items():
        assert (gpu_grads[name].cpu() - gradient).norm() <= tolerance * gradient.norm()


@pytest.mark.parametrize("window", [None, 16])
def test_varlen_attention_is_sdpa_on_each_document_alone(window):
    ends = torch.tensor([0, 33, 34, 100, 128], dtype=torch.int32, device="cuda")
    draw = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, 128, 64, device="cuda", dtype=torch.bfloat16, generator=draw) for heads in (8, 2, 2)
    )
    out, _ = varlen_attention(
        torch.nn.Identity(), q, k, v, None, sliding_window=window, document_ends=ends, max_document=66
    )
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        mask = ((distance >= 0) & (distance < (window or 1000))).cuda()
        part = slice(start, stop)
        alone = F.scaled_dot_product_attention(
            q[:, :, part].float(), k[:, :, part].float(), v[:, :, part].float(), attn_mask=mask, enable_gqa=True
        )
        torch.testing.assert_close(out[:, part].float(), alone.transpose(1, 2), rtol=2e-2, atol=2e-2)


def test_adamw_8bit_trains(gpu):
    config = engine_cases.config({"name": "single"}, optim={"name": "adamw_8bit"})
    history = gpu.run(engine_cases.losses, config)[0]
    assert history[-1] < history[0]

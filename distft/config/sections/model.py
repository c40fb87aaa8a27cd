"""The section that names a base model and says how it is kept. Imports neither torch nor Hydra."""

from typing import Any, Literal

from pydantic import PositiveInt

from distft.config.sections.section import Section


class Model(Section):
    source: str | list[str]
    """Hub id, local folder, `.gguf` file, or `package://PKG/FILE`; of a list, the first that is there."""
    random_init: dict[str, Any] | None = None
    """Keys of a Hugging Face config (with `model_type`): random weights of that shape; `source` gives the tokenizer."""
    num_hidden_layers: PositiveInt | None = None
    """Of the base's blocks only the first ones, this many; null: all."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """How the frozen base is stored. Parameters that train are float32 under every engine."""
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmul precision; `auto`: `dtype`, but float32 on CPUs without bfloat16 units, where that is 5x faster."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4`: the base's linear layers in 4 bits with double quantisation (QLoRA, arXiv:2305.14314)."""
    gradient_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute in the backward pass: nothing; each block; only what lies between a block's attention and matmuls."""
    attention: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """`auto`: `flash_attention_2` on a GPU where it is installed, else `varlen` (SDPA by document)."""
    trust_remote_code: bool = False
    """Run the model's own Python code; only with `revision` set to a 40-hex commit."""

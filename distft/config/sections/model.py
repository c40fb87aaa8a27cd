"""The section that names a base model and says how it is kept. Imports neither torch nor Hydra."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveInt

from distft.config.keys import show
from distft.config.sections.section import Section, problems_of, with_control_characters
from distft.runtime.location import choose

_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    """`auto`: `flash_attention_2` on a GPU where it is installed, else `varlen` (SDPA by document). Before the first
    batch each is compared with the model's own forward pass on documents alone; where it differs the next one is taken,
    and said: at last each document in a row of its own, padded."""
    trust_remote_code: bool = False
    """Run the model's own Python code; only with `revision` set to a 40-hex commit."""

    @property
    def package(self) -> str:
        """The package that quantises it."""
        return "bitsandbytes" if self.quantization == "nf4" else ""

    def problems(self, key: str = "model") -> Iterator[str]:
        given = [self.source] if isinstance(self.source, str) else self.source
        if not given or not all(source.strip() for source in given):
            yield f"{key}.source: must name a model, got {show(self.source)}; give a hub id, a folder or a .gguf file"
        yield from (
            f"{key}.source: must hold no control characters, got {each!r}; rename it"
            for each in with_control_characters(given)
        )
        if self.trust_remote_code and not _COMMIT.fullmatch(self.revision or ""):
            yield (
                f"{key}.trust_remote_code: must have {key}.revision pinned to a commit (40 hex digits), "
                f"got {show(self.revision)}; "
                f"give {key}.revision=COMMIT, or {key}.trust_remote_code=false"
            )
        if self.random_init is not None and "model_type" not in self.random_init:
            yield f"{key}.random_init: must name a model_type, got none; give {key}.random_init.model_type=llama"

    def missing(self, key: str = "model") -> Iterator[str]:
        if self.source:
            yield from problems_of(choose, self.source, f"{key}.source")

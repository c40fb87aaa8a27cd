"""What is known of PEFT's methods beside their options: what each needs, and what it does not go with."""

from dataclasses import replace

from distft.config.sections.traits import AdapterTraits

UNFIT = {
    "adamss": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "cartridge": "it starts from the attention states of a text of its own, which no data format holds",
    "cpt": "it needs the kind of each token of a context, which no data format holds",
    "frod": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "lily": "PEFT joins its matrices over the layers as it attaches it, and here each layer starts on its own",
    "multitask_prompt_tuning": "it needs a task id with each row, which no data format holds",
    "poly": "it needs a task id with each row, which no data format holds",
    "psoft": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "randlora": "PEFT makes its bases as it attaches it, and here that is before there is memory behind the model",
    "shadow": "it puts a second network beside the blocks, which would not be sharded",
    "shira": "PEFT reads the base's weights as it attaches it, and here they are loaded after that",
    "tinylora": "PEFT makes its vectors as it attaches it, and here that is before there is memory behind the model",
    "unilora": "PEFT makes its vectors as it attaches it, and here that is before there is memory behind the model",
    "xlora": "it mixes adapters that were trained before",
}
"""Methods of PEFT that are refused, and why."""

PROMPT = AdapterTraits(
    virtual_tokens=True,
    targets="",
    needs={"num_virtual_tokens": "20"},
    unmergeable="virtual tokens are no part of any weight",
)

DIFFERENT = {
    "adalora": AdapterTraits(rank_budget=(0, 0)),
    "adaption_prompt": AdapterTraits(
        starts_as_base=True,
        targets="",
        needs={"adapter_len": "10", "adapter_layers": "2"},
        decoders_only=True,
        keeps_heads=False,
        unmergeable="its prompts are no part of any weight",
    ),
    "osf": AdapterTraits(needs_hooks="it projects its gradients in hooks that FSDP2 does not call"),
    "p_tuning": PROMPT,
    "prefix_tuning": replace(PROMPT, is_cache=True),
    "prompt_tuning": PROMPT,
    "trainable_tokens": AdapterTraits(targets="[embed_tokens]", needs={"token_indices": "[0,1]"}, keeps_heads=False),
    "vblora": AdapterTraits(unshardable="all blocks share its vectors, and blocks are sharded one by one"),
}
"""Methods of PEFT whose traits differ from the defaults."""


def traits_of(method: str) -> AdapterTraits:
    return DIFFERENT.get(method, AdapterTraits())

"""Losses of encoder-decoders are those of the full logits that each family of transformers makes, and make none."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertConfig, EncoderDecoderConfig

from distft.config import schema
from distft.data.loader import Batch
from distft.task import loss as loss_module
from distft.task.seq2seq import EncoderDecoder

VOCABULARY = 60
BART_LIKE = ("bart", "bigbird_pegasus", "led", "marian", "mbart", "mvp", "pegasus", "pegasus_x", "plbart")
T5_LIKE = ("longt5", "mt5", "switch_transformers", "t5", "umt5")
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 2}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64, "init_std": 0.4}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
PROPHET = {"hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2}
PROPHET |= {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
FSMT = {"langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY}
SHAPES = {
    **dict.fromkeys(BART_LIKE, BART),
    **dict.fromkeys(T5_LIKE, T5),
    "led": {
        **BART,
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "t5 v1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5 unscaled": {**T5, "scale_decoder_outputs": False},
    "prophetnet": PROPHET,
    "blenderbot": BART,
    "blenderbot-small": BART,
    "m2m_100": {**BART, "dropout": 0.0},
    "nllb-moe": {
        **BART,
        "num_experts": 4,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
        "router_jitter_noise": 0.0,
    },
    "fsmt": {**BART, **FSMT},
}
OWN_SHIFT = ("blenderbot", "blenderbot-small", "m2m_100", "nllb-moe")
FAMILIES = [*(family for family in SHAPES if family not in OWN_SHIFT), "encoder-decoder"]
EVERY_WAY = ["t5", "t5 v1.1", "bart", "mbart", "marian", "pegasus"]
CASES = [(family, adapter, e) for family in EVERY_WAY for adapter in ("full", "lora", "lora on head") for e in (0, 0.1)]
CASES += [(family, "full", 0.1) for family in FAMILIES if family not in EVERY_WAY]


def model_of(family):
    """A random model of the family, its constant bias and its embeddings made large enough to be missed."""
    torch.manual_seed(0)
    if family == "encoder-decoder":
        bert = BertConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, deepcopy(bert), **SPECIAL)
    else:
        shape = {"vocab_size": VOCABULARY, **SPECIAL, **SHAPES[family]}
        config = AutoConfig.for_model(family.split()[0], **shape)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def batch_of(count=3):
    """Sources and targets of 4 to 9 tokens."""
    lengths = torch.tensor([[5, 4], [9, 7], [4, 9]])[:count]
    ends = lengths.flatten().cumsum(0)
    ids = torch.randint(3, VOCABULARY, (1, int(ends[-1])), generator=torch.Generator().manual_seed(1))
    segments = torch.stack([ends - lengths.flatten(), ends], 1).view(count, 2, 2)
    return Batch(
        input_ids=ids,
        position_ids=torch.zeros_like(ids),
        targets=torch.full_like(ids, -100),
        document_ends=torch.cat([torch.zeros(1, dtype=torch.long), segments[:, 1, 1]]).int(),
        max_document=int(lengths.sum(1).max()),
        num_tokens=ids.numel(),
        num_targets=int(lengths[:, 1].sum()),
        seed=0,
        documents=tuple(range(count)),
        segments=segments,
    )


def module_on(model, smoothing):
    config = schema.Seq2Seq(name="seq2seq")
    module = EncoderDecoder(model, torch.float32, {"pad": 0, "end": 1, "separator": None}, config).train()
    model.eval()  # smoothing is of training, dropout would be drawn twice
    module.regularise(schema.Regularisation(label_smoothing=smoothing))
    return module


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "adapter", "smoothing"), CASES)
def test_loss_and_gradients_are_those_of_the_family_s_own_logits(family, adapter, smoothing):
    model = model_of(family)
    if adapter != "full":
        heads = ["lm_head"] if adapter == "lora on head" else []
        targets = r".*decoder.*(q_proj|\.q|query|query_proj)" + "".join(f"|.*{head}" for head in heads)
        model = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False))
    theirs, module = deepcopy(model), module_on(model, smoothing)
    batch = batch_of()
    sources, mask, labels = module._padded(batch)
    before = module.base.prepare_decoder_input_ids_from_labels(labels)
    logits = theirs.eval()(input_ids=sources, attention_mask=mask, decoder_input_ids=before, use_cache=False).logits
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100, label_smoothing=smoothing
    )
    expected.backward()
    loss = module(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, wanted = gradients(model), gradients(theirs)
    assert ours.keys() == wanted.keys() and any("decoder" in name for name in ours)
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name in wanted:
        assert (ours[name] - wanted[name]).norm() <= 1e-6 * whole, name


@pytest.mark.parametrize("family", ["bart", "t5", *OWN_SHIFT])
def test_the_decoder_reads_what_the_family_itself_gives_it_for_labels(family):
    model = model_of(family).eval()
    module = module_on(model, 0.0)
    batch = batch_of()
    sources, mask, labels = module._padded(batch)
    own = model(input_ids=sources, attention_mask=mask, labels=labels).loss * (labels != -100).sum()
    assert module(batch).item() == pytest.approx(own.item(), rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """The most elements that a tensor made under this mode has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_no_tensor_is_as_large_as_the_logits(monkeypatch, family):
    monkeypatch.setattr(loss_module, "TILE_LOGITS", 64)
    monkeypatch.setattr(loss_module, "TILE_COLUMNS", 1)
    model = model_of(family).requires_grad_(False)
    model = get_peft_model(model, LoraConfig(target_modules=r".*decoder.*(q_proj|\.q)"))
    with LargestTensor() as largest:
        module_on(model, 0.0)(batch_of()).backward()
    assert largest.elements < 3 * 9 * VOCABULARY

"""Sequence to sequence: translation, summarisation, rewriting, by encoder-decoders such as T5.

Their attention biases by distance run through no packed attention, so sources and targets are padded, with masks.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import TaskType
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from distft.config import schema
from distft.data.corpus import Corpus
from distft.data.document import IGNORED, Document, Layout, Reading, Seen, Unusable, check_text, checked
from distft.data.loader import Batch
from distft.errors import ConfigError
from distft.model.architecture import Architecture
from distft.model.isolation import Way
from distft.model.load import Loaded
from distft.task.lm_head import Finish, measure_finish
from distft.task.module import TaskModule
from distft.task.seam import Scores
from distft.task.trial import Settled


@dataclass(frozen=True)
class SourceTarget:
    """The reader of sources with their targets: a document of two segments, labelled in the second."""

    tokenizer: PreTrainedTokenizerFast
    data: schema.Data
    config: schema.Seq2Seq
    layout: Layout = Layout("token", "int32", segments=2)  # noqa: RUF009 - it is immutable
    chat_formats: frozenset[str] = field(default=frozenset())

    @property
    def formats(self) -> Mapping[str, tuple[str, ...]]:
        return self.config.traits.formats

    @property
    def facts(self) -> dict[str, Any]:
        return {"pad": self.tokenizer.pad_token_id, "end": self.tokenizer.eos_token_id}

    def options(self) -> dict[str, Any]:
        return {"prefix": self.config.prefix, "max_target": self.config.max_target}

    def learn(self, rows: Iterable[Seen]) -> "SourceTarget":
        return self

    def question(self, row: dict, format: str) -> str:
        return " ".join(str(row.get("source")).lower().split())

    def chat(self, row: dict, format: str) -> list[dict] | None:
        return None

    def documents(self, rows: list[dict], format: str) -> list[Reading]:
        results, good = checked(rows, self._texts)
        if good:
            sources = self.tokenizer([results[i][0] for i in good], verbose=False)["input_ids"]
            targets = self.tokenizer(text_target=[results[i][1] for i in good], verbose=False)["input_ids"]
            for i, source, target in zip(good, sources, targets, strict=True):
                results[i] = self._document(self._ended(source), self._ended(target), results[i][1])
        return results

    def _texts(self, row: dict) -> tuple[str, str]:
        return self.config.prefix + check_text(row, "source"), check_text(row, "target")

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _document(self, source: list[int], target: list[int], text: str) -> Reading:
        truncated = False
        if self.data.too_long == "truncate":
            most = min(self.config.max_target, self.data.max_length - 1)
            kept = self._cut(target, most), self._cut(source, self.data.max_length - min(len(target), most))
            truncated = len(kept[0]) < len(target) or len(kept[1]) < len(source)
            target, source = kept
        elif len(target) > self.config.max_target:
            return Unusable(f"target longer than {self.config.max_target} tokens")
        ids = np.array([*source, *target], np.int32)
        labels = ids.copy()
        labels[: len(source)] = IGNORED
        reference = {"target": text}
        return [Document(ids, labels, (len(source), len(target)), truncated=truncated, reference=reference)]

    def _cut(self, ids: list[int], most: int) -> list[int]:
        """The first tokens, and the end."""
        return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]


class Seq2SeqTask:
    def __init__(self, config: schema.Seq2Seq):
        self.config = config
        self.tokenizer: PreTrainedTokenizerFast | None = None

    def reader(
        self, tokenizer: PreTrainedTokenizerFast, data: schema.Data, facts: dict[str, Any] | None
    ) -> SourceTarget:
        self.tokenizer = tokenizer  # what is generated becomes text again in `scores`
        return SourceTarget(tokenizer, data, self.config)

    def architecture(self, facts: dict[str, Any]) -> Architecture:
        return Architecture(AutoModelForSeq2SeqLM, attention="sdpa", peft_task=TaskType.SEQ_2_SEQ_LM)

    def module(self, loaded: Loaded, facts: dict[str, Any]) -> "EncoderDecoder":
        return EncoderDecoder(loaded.model, loaded.compute_dtype, facts, self.config)

    def metrics(self, facts: dict[str, Any]) -> tuple[str, ...]:
        return self.config.traits.metrics

    def scores(self, outputs: Mapping[int, Any], held_out: Corpus, facts: dict[str, Any]) -> Scores:
        assert self.tokenizer is not None
        everyone = range(held_out.num_documents)
        found = self.tokenizer.batch_decode([outputs[i] for i in everyone], skip_special_tokens=True)
        return text_scores([held_out.reference(i)["target"] for i in everyone], [text.strip() for text in found])


def text_scores(truth: list[str], found: list[str]) -> Scores:
    """BLEU and chrF of the corpus by sacrebleu (0 to 100), ROUGE-L by rouge-score (mean F, 0 to 1)."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    rouge = RougeScorer(["rougeL"])
    each = [rouge.score(wanted, text)["rougeL"].fmeasure for wanted, text in zip(truth, found, strict=True)]
    return Scores(
        {
            "bleu": float(corpus_bleu(found, [truth]).score),
            "chrf": float(corpus_chrf(found, [truth]).score),
            "rouge_l": float(np.mean(each)),
        }
    )


def before_labels(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """What the decoder reads to predict `labels`: as `model` itself shifts them when it is given labels."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        before = model.prepare_decoder_input_ids_from_labels(labels)
        assert isinstance(before, Tensor)
        return before
    for kind in type(model).__mro__:  # an engine may have put a class of its own in front
        shift = getattr(sys.modules[kind.__module__], "shift_tokens_right", None)
        if shift is not None:
            shifted = shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)
            assert isinstance(shifted, Tensor)
            return shifted
    raise ConfigError(
        f"task: seq2seq must have a model that says what its decoder reads before each label, got "
        f"{type(model).__name__}; take one with prepare_decoder_input_ids_from_labels, such as T5 or BART"
    )


class EncoderDecoder(TaskModule):
    """A model of `AutoModelForSeq2SeqLM`, run by its own forward pass; up to the head, where that is plain."""

    def __init__(self, model: Any, compute: torch.dtype, facts: dict[str, Any], config: schema.Seq2Seq):
        super().__init__(model, compute, facts)
        self.has_plain_head = False
        self.settings = GenerationConfig(
            num_beams=config.num_beams,
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=facts["pad"],
            eos_token_id=facts["end"],
            decoder_start_token_id=self.base.config.decoder_start_token_id,
        )

    def settle(self, device: torch.device, rows: list[Tensor] | None = None) -> None:
        """Looks at what the model makes of its output layer's values: of no known form, its full logits are made."""
        one = torch.full((1, 1), self.facts["pad"], device=device)
        try:
            with self.evaluating():
                finish = measure_finish(self.base, input_ids=one, decoder_input_ids=one, use_cache=False)
        except Exception:  # noqa: BLE001 - FSMT and its kin have no layer to look at, each in its own way
            finish = None
        self.has_plain_head = finish is not None
        self.finish = finish or Finish()
        self.settled = Settled(Way(self.base.config._attn_implementation, padded=True), 0.0, 0.0)

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the target tokens' losses."""
        sources, mask, labels = self._padded(batch)
        before = before_labels(self.base, labels)
        inputs = {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": before, "use_cache": False}
        if not self.has_plain_head:
            logits = self.base(**inputs).logits.flatten(0, 1).float()
            return F.cross_entropy(
                logits, labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=self.smoothing
            )
        states = self._states(**inputs).flatten(0, 1)
        return self.head.loss(states, labels.flatten(), smoothing=self.smoothing)

    def evaluate(self, batch: Batch) -> tuple[Tensor, list[list[int]]]:
        loss = self.loss(batch)
        sources, mask, _ = self._padded(batch)
        # A sharded model gathers its weights at every token: no rank may be done before the others are.
        together = dist.is_initialized() and dist.get_world_size() > 1
        found = self.base.generate(
            input_ids=sources, attention_mask=mask, generation_config=self.settings, synced_gpus=together
        )
        return loss, found.tolist()[: len(batch.documents)]

    def _padded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Sources [D, S] with their mask, and labels [D, T]. An empty batch is one padding token without a label."""
        assert batch.segments is not None
        flat = batch.input_ids.flatten()
        if not batch.documents:
            return (
                flat[:1].view(1, 1),
                torch.ones_like(flat[:1]).view(1, 1),
                torch.full_like(flat[:1], IGNORED).view(1, 1),
            )
        bounds = batch.segments.tolist()
        sources = [flat[start:stop] for (start, stop), _ in bounds]
        labels = [flat[start:stop] for _, (start, stop) in bounds]
        padded = pad_sequence(sources, batch_first=True, padding_value=self.facts["pad"])
        mask = pad_sequence([torch.ones_like(source) for source in sources], batch_first=True)
        return padded, mask, pad_sequence(labels, batch_first=True, padding_value=IGNORED)

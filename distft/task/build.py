"""The task that a config names: an import and a case a task, both of which mypy checks."""

from distft.config import schema
from distft.task.seam import Task


def build(config: schema.AnyTask) -> Task:
    """The task that the config names."""
    from distft.task.causal_lm import CausalLmTask
    from distft.task.distillation import DistillationTask
    from distft.task.extractive_qa import ExtractiveQaTask
    from distft.task.preference import PreferenceTask
    from distft.task.relation_extraction import RelationExtractionTask
    from distft.task.reward import RewardTask
    from distft.task.seq2seq import Seq2SeqTask
    from distft.task.sequence_classification import SequenceClassificationTask
    from distft.task.token_classification import TokenClassificationTask

    match config:
        case schema.CausalLm():
            return CausalLmTask(config)
        case schema.SequenceClassification():
            return SequenceClassificationTask(config)
        case schema.TokenClassification():
            return TokenClassificationTask(config)
        case schema.RelationExtraction():
            return RelationExtractionTask(config)
        case schema.ExtractiveQa():
            return ExtractiveQaTask(config)
        case schema.Seq2Seq():
            return Seq2SeqTask(config)
        case schema.Preference():
            return PreferenceTask(config)
        case schema.Reward():
            return RewardTask(config)
        case schema.Distillation():
            return DistillationTask(config)

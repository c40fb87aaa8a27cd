"""What a task reads and measures is known before any data is: formats and metrics of another task are refused."""

import importlib.util

import pytest


def test_a_format_of_another_task_is_refused_with_those_it_reads(problems):
    (problem,) = problems("+exp=llama_lora", "data.format=labelled")
    assert problem.startswith("data.format: must be one of chat, prompt_completion, text for task=causal_lm")


def test_a_source_s_own_format_is_checked_too(problems):
    (problem,) = problems("+exp=llama_lora", "data.train=[{path: a.jsonl, format: chats}]")
    assert problem.startswith("data.train[0].format: must be one of") and "did you mean" in problem


@pytest.mark.parametrize(("metric", "near"), [("acuracy", "accuracy"), ("bleu", "loss")])
def test_a_metric_that_the_task_does_not_measure_is_refused_with_the_nearest(problems, metric, near):
    words = ["task=sequence_classification", "evaluation.every=5", "evaluation.samples=0"]
    (problem,) = problems("+exp=llama_lora", *words, f"evaluation.metric={metric}")
    assert "must be one of loss, accuracy, macro_f1" in problem
    assert problem.endswith(f"did you mean evaluation.metric={near}?")


def test_a_metric_of_the_task_is_taken(compose):
    words = ["task=sequence_classification", "evaluation.samples=0", "evaluation.metric=macro_f1"]
    assert compose("+exp=llama_lora", *words).evaluation.metric == "macro_f1"


def test_replies_are_refused_where_the_model_writes_none(problems):
    (problem,) = problems("+exp=llama_lora", "task=sequence_classification", "evaluation.samples=2")
    assert problem.startswith("evaluation.samples: must be 0 for task=sequence_classification")


def test_the_task_is_part_of_what_a_run_is(compose):
    from distft.config.resume import check_resume

    saved = compose("+exp=llama_lora").model_dump(mode="json")
    wrong, _ = check_resume(saved, compose("+exp=llama_lora", "task=sequence_classification", "evaluation.samples=0"))
    assert len(wrong) == 1 and wrong[0].startswith("task.name: must stay what the run began with, causal_lm")


def test_a_missing_package_is_told_with_the_extra_that_has_it(problems, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest)
    )
    (problem,) = problems("+exp=sequence_classification", here=True)
    told = "task: sequence_classification must have the packages that measure it, got no scikit-learn"
    assert problem == f"{told}; pip install 'distft[metrics]'"

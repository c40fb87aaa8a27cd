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


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_a_reference_without_an_adapter_to_switch_off_is_refused(problems, loss):
    (problem,) = problems("+exp=preference", "adapter=full", f"task.loss={loss}")
    assert (
        problem.startswith("adapter: must be one that can be switched off") and f"task.loss={loss}, got full" in problem
    )
    assert not problems("+exp=preference", "adapter=full", "task.loss=orpo")


def test_a_reference_that_the_adapter_s_start_changes_is_refused(problems):
    (problem,) = problems("+exp=preference", "adapter=pissa")
    assert problem.startswith("adapter.init: must leave the base as it is") and "got pissa" in problem
    assert not problems("+exp=preference", "adapter=pissa", "task.loss=simpo")


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["task.loss=ipo", "task.label_smoothing=0.1"], "task.label_smoothing: must be 0 but for task.loss=dpo"),
        (["task.gamma=0.5"], "task.gamma: must be null but for task.loss=simpo, got 0.5 with dpo"),
        (["task.label_smoothing=0.5"], "task.label_smoothing: must be a number"),
    ],
)
def test_keys_of_another_loss_are_refused(problems, words, start):
    (problem,) = problems("+exp=preference", *words)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["task.cache=true"], "task.top_k: must be set where task.cache keeps"),
        (["task.cache=true", "task.top_k=8", "model@task.teacher=tiny"], "task.cache: must be false where the teacher"),
        (["task.teacher.source=[]"], "task.teacher.source: must name a model, got []"),
        (["task.teacher.trust_remote_code=true"], "task.teacher.trust_remote_code: must have task.teacher.revision"),
        (["task.teacher.quantization=nf5"], "task.teacher.quantization: "),
    ],
)
def test_what_a_teacher_must_be_is_told_by_its_own_keys(problems, words, start):
    (problem,) = problems("+exp=distillation", *words)
    assert problem.startswith(start)


def test_another_teacher_is_chosen_as_a_model_is(compose):
    config = compose("+exp=distillation", "model@task.teacher=qwen3_8b", "task.teacher.quantization=nf4")
    assert config.task.teacher.source == "Qwen/Qwen3-8B" and config.task.teacher.quantization == "nf4"
    assert config.model.num_hidden_layers == 4 and config.task.teacher.num_hidden_layers is None


def test_a_teacher_that_is_not_there_is_told(problems):
    (problem,) = problems("+exp=distillation", "task.teacher.source=./no/model", here=True)
    assert problem.startswith("task.teacher.source: path must exist")


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["+exp=sequence_classification", "adapter=prompt"], "adapter.method: must be one that task=sequence_classifi"),
        (["+exp=reward", "adapter=prefix", "data.packing=false"], "adapter.method: must be one that task=reward"),
        (["+exp=token_classification", "adapter=trainable_tokens"], "adapter.method: must be one that is saved with"),
        (["+exp=reward", "adapter=adaption_prompt"], "adapter.method: must be one that is saved with the new head"),
        (["+exp=seq2seq", "adapter=adaption_prompt"], "adapter.method: must know the attention of an encoder-decoder"),
        (["+exp=seq2seq", "adapter.unfreeze_every=2"], "adapter.unfreeze_every: must be null with task=seq2seq"),
        (
            ["+exp=relation_extraction", "adapter=bottleneck", "model.quantization=nf4"],
            "model.quantization: must be none with adapter=bottleneck on task=relation_extraction",
        ),
        (
            ["+exp=extractive_qa", "regularisation.label_smoothing=0.1"],
            "regularisation.label_smoothing: must be 0 with task=extractive_qa",
        ),
        (
            ["+exp=sequence_classification", "adapter.dropout=0.1", "regularisation.r_drop=1"],
            "regularisation.r_drop: must be 0 with task=sequence_classification, whose loss does not compare",
        ),
        (["+exp=preference", "regularisation=neftune"], "regularisation.neftune_alpha: must have one text a row"),
        (["+exp=preference", "adapter=bottleneck"], "adapter: must be one that can be switched off"),
        (
            ["+exp=llama_lora", "evaluation.metric=exact_match"],
            "evaluation.metric: must be measured, got exact_match with task.exact_match=false",
        ),
    ],
)
def test_what_a_task_cannot_use_is_refused_with_the_reason(problems, words, start):
    told = problems(*words)
    assert any(problem.startswith(start) for problem in told), told
    assert all("; " in problem for problem in told), "each has a fix"

"""Every task under every engine: the gradients and the metrics of one process, 4-bit bases included."""

import pytest
import task_cases
from small import (
    LLAMA,
    MODELS,
    answered,
    completion,
    labelled,
    labelled_pair,
    pair,
    related,
    rewritten,
    several_labels,
    tagged,
    valued,
    write_rows,
    write_tokenizer,
)

CLASSES = {"name": "sequence_classification"}
CASES = {
    "continued": ({"name": "causal_lm", "exact_match": True}, "llama", completion),
    # name: task, model, rows
    "classes_bert": (CLASSES, "bert", labelled),
    "classes_llama": (CLASSES, "llama", labelled),
    "pairs_bert": ({**CLASSES, "class_weights": "balanced"}, "bert", labelled_pair),
    "several_bert": (CLASSES, "bert", several_labels),
    "values_llama": (CLASSES, "llama", valued),
    "tags_bert": ({"name": "token_classification", "stride": 4}, "bert", tagged),
    "tags_llama": ({"name": "token_classification"}, "llama", tagged),
    "relations_bert": ({"name": "relation_extraction"}, "bert", related),
    "relations_llama": ({"name": "relation_extraction"}, "llama", related),
    "answers_bert": ({"name": "extractive_qa", "stride": 8}, "bert", answered),
    "texts_t5": ({"name": "seq2seq", "num_beams": 2, "max_new_tokens": 8}, "t5", rewritten),
    "dpo": ({"name": "preference"}, "llama", pair),
    "orpo": ({"name": "preference", "loss": "orpo"}, "llama", pair),
    "reward": ({"name": "reward"}, "llama", pair),
    "distillation": ({"name": "distillation", "top_k": 7, "temperature": 2.0}, "llama", completion),
}
BART = {
    "model_type": "bart",
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
WITHOUT_HEAD = ("continued", "texts_t5", "dpo", "orpo", "distillation")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    tokenizer = write_tokenizer(folder / "tokenizer")

    def config(case, engine, quantization="none"):
        task, model, rows = CASES[case]
        source = {"source": str(tokenizer), "random_init": MODELS[model], "quantization": quantization}
        if task["name"] == "distillation":
            teacher = {
                "source": str(tokenizer),
                "random_init": {**LLAMA, "num_hidden_layers": 3},
                "quantization": "nf4",
            }
            task = {**task, "teacher": {**teacher, "dtype": "float32", "compute_dtype": "float32"}}
        data = {
            "train": write_rows(folder / f"{case}.jsonl", rows, 40, seed=1),
            "eval": write_rows(folder / f"{case}-eval.jsonl", rows, 13, seed=2),  # 13: no multiple of ranks or batches
            "cache_dir": str(folder / "cache"),
        }
        return task_cases.config(task, source, data, engine={"name": engine})

    return config


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_metrics_on_two_ranks_are_those_of_one(one_rank, two_ranks, make, case):
    for engine, quantization in (("fsdp", "none"), ("zero3", "nf4")):
        loss, gradients, numbers = one_rank.run(task_cases.one_step, make(case, "single", quantization))[0]
        assert set(numbers) > {"loss"}
        for rank_loss, rank_gradients, rank_numbers in two_ranks.run(
            task_cases.one_step, make(case, engine, quantization)
        ):
            assert rank_loss == pytest.approx(loss, rel=1e-5)
            assert rank_numbers == pytest.approx(numbers, rel=1e-5, nan_ok=True)
            assert rank_gradients.keys() == gradients.keys()
            for name, gradient in gradients.items():
                distance = (rank_gradients[name] - gradient).norm()
                assert distance <= 2e-5 * gradient.norm() + 1e-8, (engine, name)
                assert gradient.any(), name
            heads = ("classifier", "score", "qa_outputs")
            assert case in WITHOUT_HEAD or any(head in name for head in heads for name in gradients)


@pytest.mark.parametrize("shape", [{}, {"tie_word_embeddings": False}, BART], ids=["tied", "untied", "with a bias"])
def test_an_encoder_decoder_whose_head_trains_has_the_gradients_of_one_rank(one_rank, two_ranks, make, shape):
    def config(engine):
        made = make("texts_t5", engine).model_dump()
        model = {**made["model"], "random_init": {**made["model"]["random_init"], **shape}}
        return task_cases.config(made["task"], model, made["data"], engine={"name": engine}, adapter={"method": "full"})

    loss, gradients, _ = one_rank.run(task_cases.one_step, config("single"))[0]
    for engine in ("fsdp", "zero3"):
        for rank_loss, rank_gradients, _ in two_ranks.run(task_cases.one_step, config(engine)):
            assert rank_loss == pytest.approx(loss, rel=1e-5)
            assert rank_gradients.keys() == gradients.keys()
            for name, gradient in gradients.items():
                distance = (rank_gradients[name] - gradient).norm()
                assert distance <= 2e-5 * gradient.norm() + 1e-6, (engine, name)

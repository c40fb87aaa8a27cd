"""distft.evaluate ensemble=: members as they are alone, and the mean of their probabilities."""

import json

import command_runs
import numpy as np
import pytest

EVALUATE = "distft.evaluate"


@pytest.fixture(scope="module")
def classifiers(words, child, tmp_path_factory):
    """Two runs that tell odd numbers from even ones and from none, and what is held out."""
    folder = tmp_path_factory.mktemp("classes")
    rows = [{"text": f"Say {word} {i}", "label": label} for i in range(40) for word, label in
            (("number", "odd" if i % 2 else "even"), ("figure", "none"))]  # fmt: skip
    for name, part in (("train", rows[20:]), ("eval", rows[:20])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    shared = [
        *words,
        "task=sequence_classification",
        "evaluation.samples=0",
        "data.packing=false",
        f"data.train={folder / 'train.jsonl'}",
        f"data.eval={folder / 'eval.jsonl'}",
        "data.eval_fraction=0",
    ]
    runs = [child(command_runs.train, [*shared, f"name=classes{seed}", f"seed={seed}"]) for seed in (0, 1)]
    return runs, rows[:20]


def test_the_mean_of_probabilities_is_judged_beside_each_member(classifiers, command, child, base):
    runs, rows = classifiers
    done = command(EVALUATE, f"ensemble=[{runs[0]},{runs[1]}]")
    assert done.code == 0, done.err
    numbers = json.loads((runs[0] / "ensemble.json").read_text())["numbers"]
    assert list(numbers) == ["classes0", "classes1", "ensemble"]
    texts, tables = [row["text"] for row in rows], []
    for run, name in zip(runs, numbers, strict=False):
        labels, table = child(command_runs.class_chances_of_folder, base, run / "adapter", texts)
        truth = np.array([labels.index(row["label"]) for row in rows])
        tables.append(np.array(table))
        assert numbers[name]["accuracy"] == pytest.approx((tables[-1].argmax(1) == truth).mean())
        assert numbers[name]["loss"] == pytest.approx(-np.log(tables[-1][range(20), truth]).mean(), rel=1e-4)
    mean = np.mean(tables, axis=0)
    assert (np.sort(mean)[:, -1] - np.sort(mean)[:, -2]).min() > 1e-4, "ties would be decided by rounding"
    assert numbers["ensemble"]["accuracy"] == pytest.approx((mean.argmax(1) == truth).mean())
    assert "ensemble" in done.out and (runs[0] / "confusion_matrix.html").exists()


def test_a_run_that_has_a_head_is_not_asked_for_words(classifiers, command, tmp_path):
    (tmp_path / "p.jinja").write_text("{{ text }} =")
    done = command(EVALUATE, f"run={classifiers[0][0]}", f"prompt={tmp_path / 'p.jinja'}")
    assert done.code == 2 and "got task=sequence_classification" in done.err, done


def test_members_that_do_not_fit_are_named(classifiers, trained, command):
    runs, _ = classifiers
    for words, told in {
        (f"ensemble=[{runs[0]},{trained('lora')}]",): "got another task in",
        (f"ensemble=[{trained('lora')},{trained('wide')}]",): "got another adapter.r, adapter.alpha in",
        (f"ensemble=[{trained('lora')},{trained('again')}]",): "give prompt= besides",
        (f"ensemble=[{runs[0]}]",): "must be two folders of runs or more",
        (f"ensemble=[{runs[0]},{runs[1]}x]",): "did you mean",
    }.items():
        done = command(EVALUATE, *words)
        assert done.code == 2 and told in done.err, (words, done)

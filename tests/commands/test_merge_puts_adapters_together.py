"""distft.merge: what it writes is what PEFT makes of the same adapters, and a run folder like any other."""

import json
import shutil

import command_runs
import numpy as np
import pytest
from safetensors.numpy import load_file

MERGE, EVALUATE = "distft.merge", "distft.evaluate"


def loss(run) -> float:
    return json.loads((run / "evaluation.json").read_text())["trained"]["loss"]


@pytest.mark.parametrize(
    ("method", "other", "more", "weights", "options"),
    [
        ("linear", "again", [], [0.5, 0.5], {}),
        ("linear", "again", ["merge.weights=[0.3,1.2]"], [0.3, 1.2], {}),
        ("cat", "wide", [], [0.5, 0.5], {}),
        ("svd", "wide", ["merge.r=8"], [0.5, 0.5], {"svd_rank": 8}),
        ("ties", "again", ["merge.density=0.4"], [0.5, 0.5], {"density": 0.4}),
        ("dare_linear", "again", ["merge.seed=3"], [0.5, 0.5], {"density": 0.5}),
    ],
)
def test_two_adapters_are_what_peft_makes_of_them(
    trained, command, child, base, tmp_path, method, other, more, weights, options
):
    runs, target = [trained("lora"), trained(other)], tmp_path / "merged"
    done = command(
        MERGE, f"run={runs[0]}", f"merge.runs=[{runs[1]}]", f"merge.method={method}", f"merge.to={target}", *more
    )
    assert done.code == 0, done.err
    adapters = [run / "adapter" for run in runs]
    reference = child(
        command_runs.loss_of_combined, runs[0], base, adapters, method, weights, options, 3 if "dare" in method else 0
    )
    assert command(EVALUATE, f"run={target}").code == 0
    assert loss(target) == pytest.approx(reference, rel=1e-5)
    assert child(command_runs.loss_of_folder, runs[0], target / "adapter", base) == pytest.approx(reference, rel=1e-5)
    alone = [json.loads((target / "evaluation.json").read_text())["base"]["loss"]]
    assert all(abs(reference - value) > 1e-4 for value in alone), "an adapter that does nothing would pass"


def test_the_scale_of_each_adapter_is_kept_whatever_its_rule(trained, command, tmp_path):
    """One of the two scales by alpha / sqrt(r): the sum of both is what B A times their scales add up to."""
    ours, target = trained("lora"), tmp_path / "merged"
    theirs = shutil.copytree(trained("again"), tmp_path / "rslora")
    for file, before, after in (
        ("config.yaml", "rslora: false", "rslora: true"),
        ("adapter/adapter_config.json", '"use_rslora": false', '"use_rslora": true'),
    ):
        text = (theirs / file).read_text()
        assert before in text
        (theirs / file).write_text(text.replace(before, after))
    done = command(
        MERGE, f"run={theirs}", f"merge.runs=[{ours}]", "merge.method=cat", "merge.weights=[1,2]", f"merge.to={target}"
    )
    assert done.code == 0, done.err
    config = json.loads((target / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])

    def change(run, scale: float) -> dict[str, np.ndarray]:
        tensors = load_file(run / "adapter" / "adapter_model.safetensors")
        return {
            name: scale * tensors[name.replace("lora_A", "lora_B")] @ value
            for name, value in tensors.items()
            if "lora_A" in name
        }

    sums, first, second = change(target, scale), change(theirs, 32 / 16**0.5), change(ours, 2 * 32 / 16)
    for name, value in sums.items():
        np.testing.assert_allclose(value, first[name] + second[name], rtol=1e-4, atol=1e-6)


def test_modules_that_train_in_full_are_averaged_by_the_weights(trained, command, tmp_path):
    runs, target = [trained("head"), trained("again_head")], tmp_path / "merged"
    done = command(MERGE, f"run={runs[0]}", f"merge.runs=[{runs[1]}]", "merge.weights=[1,3]", f"merge.to={target}")
    assert done.code == 0, done.err
    ours, theirs, merged = (load_file(run / "adapter" / "adapter_model.safetensors") for run in [*runs, target])
    (name,) = [each for each in merged if "lora_" not in each]
    np.testing.assert_allclose(merged[name], 0.25 * ours[name] + 0.75 * theirs[name], rtol=1e-5, atol=1e-7)
    assert merged.keys() == ours.keys()
    assert command(EVALUATE, f"run={target}").code == 0


@pytest.mark.parametrize(("name", "file"), [("often", "adapter_model"), ("often_full", "model")])
def test_checkpoints_of_a_run_are_averaged(trained, command, tmp_path, name, file):
    run, target = trained(name), tmp_path / "mean"
    done = command(MERGE, f"run={run}", "merge.checkpoints=2", f"merge.to={target}")
    assert done.code == 0, done.err
    steps = [load_file(run / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors") for step in (2, 3)]
    mean = load_file(target / "adapter" / f"{file}.safetensors")
    assert mean.keys() == steps[0].keys()
    for key, value in mean.items():
        np.testing.assert_allclose(value, (steps[0][key].astype(np.float64) + steps[1][key]) / 2, rtol=1e-6, atol=1e-9)
    assert any((steps[0][key] != steps[1][key]).any() for key in mean)
    assert command(EVALUATE, f"run={target}").code == 0
    listed = command(MERGE, f"run={run}", "merge.checkpoints=[2,3]", f"merge.to={tmp_path / 'listed'}")
    assert listed.code == 0, listed.err
    same = load_file(tmp_path / "listed" / "adapter" / f"{file}.safetensors")
    assert all((same[key] == mean[key]).all() for key in mean)


def test_adapters_that_do_not_fit_together_are_refused_and_nothing_is_written(trained, command, tmp_path):
    run, target = trained("lora"), tmp_path / "merged"
    other = shutil.copytree(trained("again"), tmp_path / "again")
    environment = json.loads((other / "environment.json").read_text())
    environment["base"]["digest"] = "0" * 64
    (other / "environment.json").write_text(json.dumps(environment))
    for words, told in {
        (f"merge.runs=[{other}]",): "must be adapters on one base",
        (f"merge.runs=[{trained('full')}]",): "adapter.method",
        (f"merge.runs=[{trained('wide')}]",): "wants adapters of one rank r, got 16",
        (f"merge.runs=[{tmp_path / 'agian'}]",): "did you mean",
        (f"merge.runs=[{trained('again')}]", "merge.weights=[1]"): "merge.weights: must be 2 numbers",
        (f"merge.runs=[{trained('again')}]", "merge.density=0.2"): "merge.density: belongs to ties and dare",
        ("merge.checkpoints=2",): "at most those there are, 1",
        ("merge.checkpoints=[3,9]",): "steps there: 3",
        (): "merge.runs: must be set, or merge.checkpoints",
    }.items():
        done = command(MERGE, f"run={run}", f"merge.to={target}", *words)
        assert done.code == 2 and told in done.err, (words, done)
    assert command(MERGE, f"run={trained('dora')}", f"merge.runs=[{run}]", f"merge.to={target}").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_a_run_whose_adapter_took_a_part_of_the_base_is_refused(trained, command, tmp_path):
    run = trained("pissa")
    done = command(MERGE, f"run={run}", f"merge.runs=[{run}]", f"merge.to={tmp_path / 'merged'}")
    assert done.code == 2 and "adapter.init=pissa" in done.err

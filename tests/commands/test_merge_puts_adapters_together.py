"""distft.merge: what it writes is the weighted sum of the changes that were merged, and a run folder like any other."""

import json
import shutil

import command_runs
import numpy as np
import pytest
from safetensors.numpy import load_file

MERGE, EVALUATE = "distft.merge", "distft.evaluate"


def loss(run) -> float:
    return json.loads((run / "evaluation.json").read_text())["trained"]["loss"]


def changes(run) -> dict[str, np.ndarray]:
    """What the adapter adds to each layer's weight, by PEFT's rule for its scale."""
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    found = {}
    for name, a in tensors.items():
        if "lora_A" in name:
            found[name] = scale * tensors[name.replace("lora_A", "lora_B")].astype(np.float64) @ a
    return found


def require_equal(ours: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert ours.keys() == wanted.keys() and ours
    for name, value in wanted.items():
        assert np.abs(value).max() > 1e-3, "a change of nothing would pass"
        np.testing.assert_allclose(ours[name], value, atol=2e-6 * np.abs(value).max(), err_msg=name)


@pytest.fixture(scope="module")
def rslora(trained, tmp_path_factory):
    """A run of another rank and alpha, whose scale is alpha / sqrt(r)."""
    run = shutil.copytree(trained("wide"), tmp_path_factory.mktemp("rslora") / "rslora")
    for file, before, after in (
        ("config.yaml", "rslora: false", "rslora: true"),
        ("adapter/adapter_config.json", '"use_rslora": false', '"use_rslora": true'),
    ):
        text = (run / file).read_text()
        assert before in text
        (run / file).write_text(text.replace(before, after))
    return run


@pytest.mark.parametrize("method", [None, "linear", "cat", "ties", "magnitude_prune_svd", "dare_linear"])
def test_a_run_and_its_copies_merge_to_the_run(trained, command, tmp_path, method):
    run, target = trained("lora"), tmp_path / "merged"
    copies = [shutil.copytree(run, tmp_path / name) for name in ("one", "two")]
    words = [] if method is None else [f"merge.method={method}"]
    words += ["merge.density=1"] if method not in (None, "linear", "cat") else []
    done = command(MERGE, f"run={run}", f"merge.runs=[{','.join(map(str, copies))}]", f"merge.to={target}", *words)
    assert done.code == 0, done.err
    require_equal(changes(target), changes(run))
    config = json.loads((target / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == (3 * 16 if method == "cat" else 16)


@pytest.mark.parametrize("method", ["svd", "linear", "cat"])
@pytest.mark.parametrize(("more", "weights"), [([], (0.5, 0.5)), (["merge.weights=[0.3,-1.2]"], (0.3, -1.2))])
def test_weights_are_those_of_the_changes_whatever_rank_and_scale(
    trained, command, child, rslora, base, tmp_path, method, more, weights
):
    run, target = trained("lora"), tmp_path / "merged"
    done = command(MERGE, f"run={run}", f"merge.runs=[{rslora}]", f"merge.method={method}", f"merge.to={target}", *more)
    assert done.code == 0, done.err
    ours, theirs = changes(run), changes(rslora)
    require_equal(changes(target), {name: weights[0] * ours[name] + weights[1] * theirs[name] for name in ours})
    if method == "svd" and not more:
        assert command(EVALUATE, f"run={target}").code == 0
        by_peft = child(command_runs.loss_of_folder, run, target / "adapter", base)
        assert loss(target) == pytest.approx(by_peft, rel=1e-5)


def test_a_smaller_rank_is_the_best_approximation(trained, command, tmp_path):
    runs, target = [trained("lora"), trained("wide")], tmp_path / "merged"
    assert command(MERGE, f"run={runs[0]}", f"merge.runs=[{runs[1]}]", "merge.r=8", f"merge.to={target}").code == 0
    ours, theirs, merged = map(changes, [*runs, target])
    for name, value in merged.items():
        u, s, v = np.linalg.svd((ours[name] + theirs[name]) / 2)
        np.testing.assert_allclose(value, u[:, :8] * s[:8] @ v[:8], atol=1e-5)


def test_modules_that_train_in_full_are_averaged_by_the_weights(trained, command, tmp_path):
    runs, target = [trained("head"), trained("again_head")], tmp_path / "merged"
    done = command(MERGE, f"run={runs[0]}", f"merge.runs=[{runs[1]}]", "merge.weights=[1,3]", f"merge.to={target}")
    assert done.code == 0, done.err
    ours, theirs, merged = (load_file(run / "adapter" / "adapter_model.safetensors") for run in [*runs, target])
    (name,) = [each for each in merged if "lora_" not in each]
    np.testing.assert_allclose(merged[name], 0.25 * ours[name] + 0.75 * theirs[name], rtol=1e-5, atol=1e-7)
    assert merged.keys() == ours.keys()
    assert command(EVALUATE, f"run={target}").code == 0
    none = command(MERGE, f"run={runs[0]}", f"merge.runs=[{runs[1]}]", "merge.weights=[1,-1]", f"merge.to={target}0")
    assert none.code == 2 and "merge.weights: must have a sum other than 0" in none.err


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
        (f"merge.runs=[{trained('again')}]", "merge.method=cat", "merge.r=4"): "merge.r: belongs to methods that",
        (f"merge.runs=[{trained('again')}]", "merge.density=0", "merge.method=ties"): "merge.density",
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

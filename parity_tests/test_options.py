"""Options of recipes of today: that each follows PyTorch's formula in both frameworks, on rung 5, and survives a resume."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

import keras_impl
import shared
import torch_impl
from keras_impl import optimizers
from shared import images, mixup, recipes, weights
from twins import batches, ladder, runlog, training

TOLERANCES = ladder.TOLERANCES["float64"]
PACKAGES = {"torch": torch_impl, "tf": keras_impl}
# Batch norms, biases, dropout, and a projection that nothing uses.
SPEC = {
    "name": "small",
    "input": [1, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 4, "out": 6, "stride": 2, "shortcut": "unused"},
        {"name": "drop", "type": "dropout", "rate": 0.2},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 96, "out": 10},
    ],
}
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAMW = {"name": "adamw", "learning_rate": 0.002, "weight_decay": 0.5}
EXEMPT = {"no_decay": ["bias", "batch_norm"]}
RATES = {"rates": {"fc.*": 2, "layer1.*": 0.1}}
LOSS = {"label_smoothing": 0.1, "class_weights": [number / 7 for number in range(1, 11)]}
# name: (optimiser, what else an engine takes, alpha of mixup)
OPTIONS = {
    "label smoothing": (SGD, {"label_smoothing": 0.1}, None),
    "class weights": (SGD, {"class_weights": [number / 7 for number in range(1, 11)]}, None),
    "clipping by norm": (SGD | {"clip_norm": 0.5}, {}, None),
    "clipping by value": (SGD | {"clip_value": 0.01}, {}, None),
    "no decay": (SGD | EXEMPT | {"weight_decay": 0.1}, {}, None),
    "no decay, adamw": (ADAMW | EXEMPT, {}, None),
    "rates and decay": (SGD | RATES | {"weight_decay": 0.1}, {}, None),
    "accumulation": (SGD, {"accumulate": 4}, None),
    "averaged weights": (SGD, {"ema": 0.9}, None),
    "mixup": (SGD, {}, 0.2),
    "all": (ADAMW | EXEMPT | RATES | {"clip_norm": 0.5}, LOSS | {"accumulate": 2, "ema": 0.9}, 0.2),
}
RECIPE = {
    "name": "small",
    "network": SPEC,
    "data": "digits",
    "batch": 100,
    "accumulate": 3,
    "epochs": 3,
    "label_smoothing": 0.1,
    "ema": 0.8,
    "augmentation": {"pad": 1, "mixup": 0.2},
    "optimizer": SGD | EXEMPT | RATES | {"weight_decay": 1e-3, "clip_norm": 1},
    "schedule": {"name": "one_cycle"},
    "precision": "float64",
}


def new_engine(package, optimizer, **options):
    return package.Engine(package.build(SPEC, dtype="float64"), optimizer, **options)


def steps_of(count, alpha=None):
    """(images, labels) of steps."""
    generator = np.random.default_rng(0)
    plain = [(generator.standard_normal((8, 1, 8, 8)), generator.integers(0, 10, 8)) for _ in range(count)]
    return [mixup.mixed(*batch, *mixup.pairs(8, alpha, 0, step)) if alpha else batch for step, batch in enumerate(plain)]


@pytest.mark.parametrize("option", OPTIONS)
def test_rung_5(option):
    optimizer, options, alpha = OPTIONS[option]
    pair = [new_engine(package, optimizer, **options) for package in PACKAGES.values()]
    plain = new_engine(torch_impl, {key: optimizer[key] for key in optimizer if key in (*SGD, "weight_decay")})
    start, steps, rate, losses = pair[0].state(), steps_of(20, alpha), optimizer["learning_rate"], []
    for number, batch in enumerate(steps):
        if number == 10:
            half = [engine.state() for engine in pair]
        losses.append([engine.step(*batch, rate / (1 + number)) for engine in pair])
        plain.step(batch[0], getattr(batch[1], "first", batch[1]), rate / (1 + number))
    for (ours, right), (theirs, same) in losses:
        assert ladder.relative(ours, theirs) <= TOLERANCES["losses"] and right == same
    worst = ladder.largest(ladder.states(pair))
    assert worst.value <= TOLERANCES["weights"], worst
    # The option does something: the run is another one without it.
    if option != "averaged weights":
        without = {name: array for name, array in plain.state().items() if not name.startswith("optimizer.")}
        assert max(ladder.relative(array, pair[0].state()[name]) for name, array in without.items()) > 1e-3
    # One graph for all steps, whatever the rate and the share of mixed images; three where gradients are accumulated.
    if keras_impl.Engine.framework == "Keras":  # on TensorFlow
        assert pair[1]._steps.experimental_get_tracing_count() <= min(options.get("accumulate", 1), 3)
    # Each goes on from where the other was after ten steps, and ends where the other ends.
    ends = [engine.state() for engine in pair]
    assert start.keys() == ends[0].keys() == ends[1].keys()
    for engine, other in zip(pair, reversed(half), strict=True):
        engine.load(other, 10)
    for number, batch in enumerate(steps[10:], start=10):
        for engine in pair:
            engine.step(*batch, rate / (1 + number))
    for engine, end in zip(pair, reversed(ends), strict=True):
        worst = ladder.largest(ladder.between(end, engine.state()))
        assert worst.value <= TOLERANCES["weights"], worst


def test_everything_is_plain_pytorchs():
    """A step with all options, against the same written out with PyTorch's own functions."""
    optimizer, options, alpha = OPTIONS["all"]
    engine = new_engine(torch_impl, optimizer, **options)
    net = torch_impl.build({**SPEC, "layers": [layer for layer in SPEC["layers"] if layer["name"] != "drop"]}, dtype="float64")
    engine.dropouts["drop"].rate = 0.0  # dropout has its own tests
    torch_impl.load(net, torch_impl.state(engine.net))
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    average.n_averaged.fill_(1)  # else the first step's weights, and not the initial ones, begin the average
    by_hand = []
    for name, weight in net.named_parameters():
        decay = 0.0 if weight.ndim == 1 else 0.5
        factor = 2 if name.startswith("fc.") else 0.1 if name.startswith("layer1.") else 1
        by_hand.append({"params": [weight], "weight_decay": decay, "lr": 0.002 * factor})
    theirs = torch.optim.AdamW(by_hand)
    for pictures, (first, second, share) in steps_of(5, alpha):
        theirs.zero_grad()
        total = 0.0
        for half in (slice(0, 4), slice(4, 8)):
            logits = net.train()(torch.from_numpy(pictures[half]))
            targets, scales = [torch.from_numpy(labels[half]) for labels in (first, second)], torch.arange(1.0, 11.0).double()
            both = [F.cross_entropy(logits, target, scales, label_smoothing=0.1) for target in targets]
            loss = (share * both[0] + (1 - share) * both[1]) / 2
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        theirs.step()
        average.update_parameters(net)
        assert engine.step(pictures, mixup.Mixed(first, second, share))[0] == pytest.approx(total, rel=1e-13)
    expected = torch_impl.state(net) | {f"ema.{name}": array for name, array in torch_impl.state(average.module).items()}
    found = engine.state()
    for name, array in expected.items():
        assert np.allclose(found[name], array, rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("clip", [{"clip_norm": 0.7}, {"clip_norm": 100.0}, {"clip_value": 0.3}])
def test_clipping_is_pytorchs(clip):
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((3, 4)), generator.standard_normal(5)]
    parameters = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for array in arrays]
    for parameter, array in zip(parameters, arrays, strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    if "clip_norm" in clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip["clip_norm"])
    else:
        torch.nn.utils.clip_grad_value_(parameters, clip["clip_value"])
    ours, nothing, others = optimizers.clipped([arrays[0], None, arrays[1]], **clip)
    assert nothing is None
    for found, parameter in zip((ours, others), parameters, strict=True):
        assert np.allclose(found, parameter.grad.numpy(), rtol=1e-15, atol=0)


def test_which_weights_decay_and_how_fast_they_learn():
    groups = recipes.groups(EXEMPT | {"rates": {"fc.*": 1, "*": 0.1}}, SPEC, weights.initial(SPEC))
    found = {name: (factor, decays) for factor, decays, names in groups for name in names}
    assert found["fc.weight"] == (1, True) and found["fc.bias"] == (1, False)
    assert found["conv1.weight"] == (0.1, True)
    assert found["bn1.weight"] == (0.1, False) == found["layer1.bn2.bias"]
    assert len(recipes.groups(SGD, SPEC, weights.initial(SPEC))) == 1
    groups = recipes.groups({"no_decay": ["bias"]}, SPEC, ["bn1.weight", "bn1.bias", "fc.bias"])
    assert groups == [(1.0, True, ["bn1.weight"]), (1.0, False, ["bn1.bias", "fc.bias"])]
    groups = recipes.groups({"rates": {"backbone": 0.1}}, SPEC, ["conv1.weight", "fc.weight", "fc.bias"])
    assert groups == [(0.1, True, ["conv1.weight"]), (1.0, True, ["fc.weight", "fc.bias"])]
    with pytest.raises(shared.Error, match="optimizer: 'rates': no weight matches 'layer9"):
        recipes.load(RECIPE | {"optimizer": SGD | {"rates": {"layer9.*": 0.1}}})
    recipes.load(RECIPE | {"freeze": ["conv1"], "optimizer": SGD | {"rates": {"conv1.*": 0.1}}})  # until it is thawed


def test_mixed_images():
    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    labels = np.arange(6)
    shares = []
    for step in range(200):
        pictures, mixed = mixup.mixed(images, labels, *mixup.pairs(6, 0.2, 5, step))
        assert pictures.dtype == np.float32 and sorted(mixed.second) == list(labels) and np.array_equal(mixed.first, labels)
        expected = mixed.share * mixed.first + (1 - mixed.share) * mixed.second
        assert np.allclose(pictures.ravel(), expected, rtol=1e-6)
        shares.append(mixed.share)
    # Of Beta(0.2, 0.2), the larger share: half of them are above 0.98, and none below a half.
    assert (
        min(shares) >= 0.5 and 0.9 < np.median(shares) < 1 and np.mean(np.less(shares, 0.75)) == pytest.approx(0.18, abs=0.08)
    )
    again, same = mixup.mixed(images, labels, *mixup.pairs(6, 0.2, 5, 199))
    assert np.array_equal(again, pictures) and same.share == mixed.share and np.array_equal(same.second, mixed.second)
    half = mixup.part(mixed, slice(2, 4))
    assert list(half.first) == [2, 3] and list(half.second) == list(mixed.second[2:4]) and half.share == mixed.share


def test_batches_of_a_recipe():
    recipe = recipes.load(RECIPE)
    spec, data = training.prepare(recipe)
    assert recipes.images_per_step(recipe) == 300 and batches.steps_per_epoch(recipe, data) == 4
    x, labels = batches.batch(recipe, spec, data, 6)
    plain, first = batches.batch(recipe | {"augmentation": {"pad": 1}}, spec, data, 6)
    assert x.shape == (300, 1, 8, 8) and np.array_equal(labels.first, first)
    assert np.array_equal(x, mixup.mixed(plain, first, *mixup.pairs(300, 0.2, 0, 6))[0]) and not np.array_equal(x, plain)
    with pytest.raises(shared.Error, match="'batch' is 100 and 'accumulate' is 20, but digits has 1,437 images to train on"):
        training.prepare(recipe | {"accumulate": 20})


class Run:
    """A run of `RECIPE` in a folder, from its start or from a checkpoint."""

    def __init__(self, folder, backend="torch", resume=None, changes=(), engine=None):
        checkpoint = training.read_checkpoint(resume) if resume else None
        self.recipe = training.resumed(checkpoint, changes) if checkpoint else recipes.load(recipes.changed(RECIPE, changes))
        spec, data = training.prepare(self.recipe)
        self.engine = engine or PACKAGES[backend].trainer(spec, self.recipe)
        if checkpoint:
            self.engine.load(checkpoint.arrays, checkpoint.step)
        elif engine:
            self.engine.load(weights.initial(SPEC))
        self.arguments = (self.engine, self.recipe, spec, data, folder, checkpoint)

    def until(self, step=None):
        """Let it run to a step, after which it is told to stop; or to its end."""
        seen = []
        for now in training.run(*self.arguments, stop=lambda: bool(step and seen[-1].step >= step)):
            seen.append(now)
        return training.read_checkpoint(self.arguments[4])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """For each backend a run that nothing interrupted, whose engine may be used again, and its checkpoint."""
    runs = {backend: Run(tmp_path_factory.mktemp(backend), backend) for backend in PACKAGES}
    return {backend: (run, run.until()) for backend, run in runs.items()}


def test_both_backends_make_the_same_run(whole):
    ours, theirs = (whole[backend][1] for backend in PACKAGES)
    for mine, other in zip(ours.history, theirs.history, strict=True):
        for key in mine.keys() - {"framework", "images_per_sec", "tested_on"}:
            assert ladder.relative(mine[key], other[key]) <= TOLERANCES["losses"], key
    worst = ladder.largest(ladder.between(ours.arrays, theirs.arrays))
    assert worst.value <= TOLERANCES["weights"], worst
    assert len([name for name in ours.arrays if name.startswith("ema.")]) == len(weights.initial(SPEC))


@pytest.mark.parametrize("backend", PACKAGES)
def test_resumed_bit_for_bit(backend, whole, tmp_path):
    (run, straight), (other, _) = whole[backend], whole["tf" if backend == "torch" else "torch"]
    half = Run(tmp_path / "a", engine=run.engine).until(7)  # the same engines, since tracing a step takes long
    assert half.sums[2] == 3 * 300 and 0 < half.sums[1] < 300 and half.sums[0] / 900 == pytest.approx(2.3, abs=0.3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = Run(tmp_path / "a", resume=tmp_path / "a", engine=run.engine).until()
    assert found.arrays.keys() == straight.arrays.keys()
    assert all(np.array_equal(found.arrays[name], array) for name, array in straight.arrays.items())
    ended = Run(tmp_path / "b", resume=tmp_path / "b", engine=other.engine).until()
    worst = ladder.largest(ladder.between(straight.arrays, ended.arrays))
    assert worst.value <= TOLERANCES["weights"], worst


def test_the_best_are_the_better_of_weights_and_average(whole):
    run, found = whole["torch"]
    row = runlog.best_epoch(found.history)
    assert runlog.accuracy(row) == max(max(r["test_accuracy"], r["ema_test_accuracy"]) for r in found.history)
    engine = new_engine(torch_impl, None)
    engine.load(weights.read_state(run.arguments[4] / "best.safetensors"))
    spec, data = training.prepare(recipes.load(RECIPE))
    assert training.evaluate(engine, spec, data, "float64")[1] == runlog.accuracy(row)
    arrays = {"fc.bias": np.zeros(1), "ema.fc.bias": np.ones(1), "optimizer.momentum_buffer.fc.bias": np.ones(1)}
    for averaged, expected in ((0.1, 0), (0.2, 1), (0.3, 1)):
        chosen = training.best_weights(arrays, {"test_accuracy": 0.2, "ema_test_accuracy": averaged})
        assert chosen == {"fc.bias": expected}
    assert training.best_weights(arrays, {"test_accuracy": 0.2}) == {"fc.bias": 0}


@pytest.mark.parametrize("package", PACKAGES.values())
def test_the_average_is_in_the_network_for_evaluation_alone(package):
    engine = new_engine(package, SGD, ema=0.9)
    for batch in steps_of(3):
        engine.step(*batch)
    before = engine.state()
    with engine.averaged():
        inside = package.state(engine.net)
    assert all(np.array_equal(array, before[f"ema.{name}"]) for name, array in inside.items())
    assert not np.array_equal(inside["bn1.running_mean"], before["bn1.running_mean"])
    after = engine.state()
    assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_what_may_change_in_the_middle_of_a_run(whole, tmp_path):
    Run(tmp_path).until(4)
    checkpoint = training.read_checkpoint(tmp_path)
    for change in ("accumulate=1", "label_smoothing=0.2", "augmentation.mixup=0.3"):
        with pytest.raises(shared.Error, match="--set .*: cannot change in the middle of a run"):
            training.resumed(checkpoint, [change])
    # Clipping, rates and the average may: a run without one gets one, of the weights that it has by then.
    plain = Run(tmp_path / "plain")
    del plain.recipe["ema"]
    plain.engine = torch_impl.trainer(SPEC, plain.recipe)
    plain.arguments = (plain.engine, *plain.arguments[1:])
    arrays = plain.until(4).arrays
    assert not any(name.startswith("ema.") for name in arrays)
    resumed = Run(tmp_path / "plain", resume=tmp_path / "plain", changes=["ema=0.5", "optimizer.clip_norm=2"])
    assert all(np.array_equal(resumed.engine.state()[f"ema.{name}"], arrays[name]) for name in weights.initial(SPEC))
    assert resumed.until().history[-1]["ema_test_accuracy"] > 0


def test_balanced_class_weights():
    recipe = recipes.load({key: RECIPE[key] for key in RECIPE if key != "label_smoothing"} | {"class_weights": "balanced"})
    with pytest.raises(shared.Error, match="pass the recipe through twins.batches.balanced"):
        torch_impl.trainer(SPEC, recipe)
    spec, data = training.prepare(recipe)
    ready = batches.balanced(recipe, data, spec)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=data.y_train)
    assert recipes.load(ready) == ready and ready["class_weights"] == pytest.approx(expected, rel=1e-15)
    assert batches.balanced(ready, data, spec) is ready
    few = data._replace(y_train=np.where(data.y_train == 4, 5, data.y_train))
    with pytest.raises(shared.Error, match="'class_weights': digits has no images of class 4 to train on"):
        batches.balanced(recipe, few, spec)
    with pytest.raises(shared.Error, match="'class_weights' has 2 numbers, but small has 10 classes"):
        recipes.load(recipe | {"class_weights": [1, 2]})


def test_top_5(whole):
    run, found = whole["torch"]
    engine, _, spec, data = run.arguments[:4]
    logits = engine.predict(images.preprocess(data.x_test, spec, "float64"))
    expected = top_k_accuracy_score(data.y_test, logits, k=5)
    assert found.history[-1]["test_top5"] == expected > found.history[-1]["test_accuracy"]
    assert found.history[-1]["ema_test_top5"] > found.history[-1]["ema_test_accuracy"]
    row = {"test_accuracy": 0.5, "test_top5": 0.9, "ema_test_accuracy": 0.6, "ema_test_top5": 0.8}
    assert runlog.top5(row) == 0.8 and runlog.top5(row | {"ema_test_accuracy": 0.4}) == 0.9
    assert runlog.top5({"test_accuracy": 0.5}) is None
    two = recipes.load(recipes.changed(RECIPE, ["classes=[[3],[5]]", "batch=20"]))
    spec, data = training.prepare(two)
    assert training.evaluate(torch_impl.trainer(spec, two), spec, data, "float64").top5 is None


def test_patience(twins, tmp_path):
    recipe = RECIPE | {"epochs": 9, "patience": 2, "optimizer": SGD | {"learning_rate": 1e-12}, "precision": "float32"}
    del recipe["ema"]
    (tmp_path / "flat.json").write_text(json.dumps(recipe | {"schedule": {"name": "constant"}}))
    status, out, error = twins("train", "flat.json", "--out", "run", folder=tmp_path)
    found = training.read_checkpoint(tmp_path / "run")
    best = runlog.best_epoch(found.history)["epoch"]
    assert status == 0 and error == "" and "No better test accuracy in 2 epochs: the run ends here." in out
    assert len(found.history) == best + 2 < 9 and " (top 5 " in out
    status, out, error = twins("train", "--resume", "run", folder=tmp_path)
    assert status == 2 and "run: the run has ended, with no better epoch in 2; pass --set patience above 2" in error
    status, out, error = twins("train", "--resume", "run", "--set", "patience=3", folder=tmp_path)
    assert status == 0 and len(training.read_checkpoint(tmp_path / "run").history) == best + 3


def on_two_devices(backend, spec, folder):
    """The checkpoint of a run on two CPU processes of PyTorch, or on two parts of the CPU in TensorFlow."""
    (folder / f"{backend}.json").write_text(json.dumps(RECIPE | {"network": spec}))
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "-m") if backend == "torch" else ()
    command = [sys.executable, "-m", *launcher, "twins", "train", f"{backend}.json", "--out", backend]
    command += ["--backend", "tf", "--devices", "2"] if backend == "tf" else []
    done = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return training.read_checkpoint(folder / backend)


@pytest.mark.long
def test_two_devices(tmp_path):
    """Gradients are clipped once all devices' are averaged. Without batch norm, two devices do what one does."""
    layers = [{**layer, "norm": False} if layer["type"] == "basic" else layer for layer in SPEC["layers"]]
    spec = {**SPEC, "layers": [layer for layer in layers if layer["type"] != "batch_norm"]}
    one = Run(tmp_path / "one", changes=[f"network={json.dumps(spec)}"]).until()
    for backend in PACKAGES:
        found = on_two_devices(backend, spec, tmp_path)
        worst = ladder.largest(ladder.between(one.arrays, found.arrays))
        assert worst.value <= TOLERANCES["weights"], (backend, worst)
        assert ladder.relative(one.history[-1]["loss"], found.history[-1]["loss"]) <= TOLERANCES["losses"]
    shutil.rmtree(tmp_path / "torch")
    shutil.rmtree(tmp_path / "tf")
    worst = ladder.largest(ladder.between(*(on_two_devices(backend, SPEC, tmp_path).arrays for backend in PACKAGES)))
    assert worst.value <= TOLERANCES["weights"], worst


MISTAKES = {
    "clip_norm=1": "unknown key 'clip_norm'; expected optimizer.clip_norm",
    "mixup=0.2": "unknown key 'mixup'; expected augmentation.mixup",
    "weight_decay=0.1": "unknown key 'weight_decay'; expected optimizer.weight_decay",
    "warmup=1": "unknown key 'warmup'; expected schedule.warmup",
    "optimizer.label_smoothing=0.1": "optimizer: unknown key 'label_smoothing'; expected label_smoothing",
    "optimizer.accumulate=4": "optimizer: unknown key 'accumulate'; expected accumulate",
    "optimizer.rate=0.1": "optimizer: unknown key 'rate'; expected optimizer.learning_rate",
    "optimizer.lr=0.1": "optimizer: unknown key 'lr'; expected optimizer.learning_rate",
    "optimizer.ema_decay=0.9": "optimizer: unknown key 'ema_decay'; expected ema",
    "optimizer.betas=[0,0]": "optimizer: unknown key 'betas', which is for adam, adamw",
    "label_smothing=0.1": "unknown key 'label_smothing', did you mean 'label_smoothing'?",
    "cutmix=1": "unknown key 'cutmix'; expected name, network, data",
    "optimizer.decay_norms=0": "optimizer: unknown key 'decay_norms'; expected learning_rate",
    "label_smoothing=1": "'label_smoothing' is 1, expected a number of at least 0, below 1",
    "accumulate=0": "'accumulate' is 0, expected a whole number of at least 1",
    "ema=1": "'ema' is 1, expected a number above 0, below 1",
    "augmentation.mixup=0": "augmentation: 'mixup' is 0, expected a number above 0",
    'optimizer.no_decay=["norm"]': 'optimizer: \'no_decay\' is ["norm"], expected a list of "bias" or "batch_norm"',
    'optimizer.rates={"fc.*": 0}': "optimizer: 'rates' is",
    "optimizer.clip_value=1": "optimizer: expected either the key 'clip_norm' or the key 'clip_value'",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes(change):
    with pytest.raises(shared.Error) as error:
        recipes.load(recipes.changed(RECIPE, [change]))
    assert MISTAKES[change] in str(error.value)

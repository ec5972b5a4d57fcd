"""Runs of training: that they go on as if nothing had been, in either framework, and what becomes of a user's mistakes."""

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_impl
import shared
import torch_impl
from shared import files, images, networks, reading, recipes, weights
from twins import backends, batches, datasets, ladder, plots, runlog, runs, training
from twins.cli import train

TOLERANCES = ladder.TOLERANCES["float64"]
PACKAGES = {"torch": torch_impl, "tf": keras_impl}
NO_JAX = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed: pip install jax")
SPEC = {
    "name": "tiny",
    "input": [1, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 4, "out": 4, "repeat": 2},
        {"name": "drop", "type": "dropout", "rate": 0.2},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 256, "out": 10},
    ],
}
RECIPE = {
    "name": "tiny",
    "network": SPEC,
    "data": "digits",
    "batch": 300,
    "epochs": 3,
    "augmentation": {"pad": 1},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "schedule": {"name": "cosine"},
    "precision": "float64",
}


class Run:
    """A run in a folder, from its start or from a checkpoint."""

    def __init__(self, folder, backend="torch", resume=None, engine=None, recipe=RECIPE, **changes):
        self.folder, self.recipe = folder, recipes.load(recipe | changes)
        checkpoint = training.read_checkpoint(resume) if resume else None
        spec, examples = training.prepare(self.recipe)
        self.engine = engine or PACKAGES[backend].trainer(spec, self.recipe)
        if checkpoint:
            self.engine.load(checkpoint.arrays, checkpoint.step)
        self.arguments = (self.engine, self.recipe, spec, examples, folder, checkpoint)

    def until(self, step=None):
        """Let it run to a step, after which it is told to stop; or to its end."""
        seen = []
        for now in training.run(*self.arguments, stop=lambda: bool(step and seen[-1].step >= step)):
            seen.append(now)
        return training.read_checkpoint(self.folder)


SPEED = ("images_per_sec", "framework", "tested_on")


def without_speed(history):
    return [{key: value for key, value in row.items() if key not in SPEED} for row in history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoint of a run that nothing interrupted, for each backend."""
    return {backend: Run(tmp_path_factory.mktemp(backend), backend).until() for backend in PACKAGES}


def test_a_run(whole, tmp_path):
    found = whole["torch"]
    assert found.step == 12 and [row["epoch"] for row in found.history] == [1, 2, 3]
    assert [row["step"] for row in found.history] == [4, 8, 12] and found.sums == [0, 0, 0, 0]
    assert found.history[2]["loss"] < found.history[0]["loss"]
    rates = [row["learning_rate"] for row in found.history]
    assert rates == pytest.approx([0.01, 0.0075, 0.0025])


def test_a_batch():
    recipe = recipes.load(RECIPE | {"seed": 3, "augmentation": {"pad": 2, "flip": True}})
    spec, examples = training.prepare(recipe)
    x, labels = batches.batch(recipe, spec, examples, 6)
    indices = batches.indices(len(examples.x_train), 300, 6, 3)
    seen = batches.augment(examples.x_train[indices], 3, 6, pad=2, flip=True)
    assert np.array_equal(labels, examples.y_train[indices])
    assert np.array_equal(x, images.normalise(seen, spec, "float64"))
    assert batches.batch(recipe | {"precision": "mixed_bfloat16"}, spec, examples, 6)[0].dtype == np.float32


def test_what_a_run_leaves(tmp_path):
    run = Run(tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    others = [".my.last.safetensors", f".{os.getppid()}.last.safetensors", f".{dead.pid}.other.last.safetensors"]
    for name in (f".{dead.pid}.last.safetensors", *others):
        (tmp_path / name).write_text("half of a checkpoint")
    found = run.until()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*training.FILES, *others} - {"curves.png"})
    assert json.loads((tmp_path / "recipe.json").read_text()) == run.recipe
    assert shared.load(tmp_path / "network.json") == SPEC
    assert runlog.read_log(tmp_path) == found.history
    best = max(found.history, key=lambda row: row["test_accuracy"])
    engine = torch_impl.Engine(torch_impl.build(SPEC, dtype="float64"))
    engine.load(weights.read_state(tmp_path / "best.safetensors"))
    spec, examples = training.prepare(run.recipe)
    scores = training.evaluate(engine, spec, examples, "float64")
    assert scores == (best["test_loss"], best["test_accuracy"], best["test_top5"], None)
    logits = engine.predict(images.preprocess(examples.x_test, spec, "float64"))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(chances[np.arange(len(logits)), examples.y_test])
    assert best["test_loss"] == pytest.approx(losses.mean(), rel=1e-12)
    assert best["test_accuracy"] == np.mean(logits.argmax(1) == examples.y_test)


def test_both_backends_make_the_same_run(whole):
    ours, theirs = whole["torch"], whole["tf"]
    for mine, other in zip(without_speed(ours.history), without_speed(theirs.history), strict=True):
        for key in mine:
            assert ladder.relative(mine[key], other[key]) <= TOLERANCES["losses"], key
    worst = ladder.largest(ladder.between(ours.arrays, theirs.arrays))
    assert worst.value <= TOLERANCES["weights"], worst


@pytest.mark.parametrize("backend", PACKAGES)
@pytest.mark.parametrize(
    "precision", ["float64", "float32", "mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long)]
)
def test_resumed_bit_for_bit(backend, precision, whole, tmp_path):
    first = Run(tmp_path / "a", backend, precision=precision)
    start = first.engine.state()
    first.until(3)
    # In another folder, and from a copy of the file; the same engine, since tracing a step takes long.
    between = Run(tmp_path / "b", backend, tmp_path / "a", first.engine, precision=precision).until(8)
    assert between.step == 8 and len(between.history) == 2
    found = Run(tmp_path / "c", backend, tmp_path / "b" / "last.safetensors", first.engine, precision=precision).until()
    if precision == "float64":
        straight = whole[backend]
    else:
        first.engine.load(start)
        straight = Run(tmp_path / "d", backend, engine=first.engine, precision=precision).until()
    assert without_speed(found.history) == without_speed(straight.history)
    assert found.arrays.keys() == straight.arrays.keys()
    assert all(np.array_equal(found.arrays[name], array) for name, array in straight.arrays.items())
    assert runlog.read_log(tmp_path / "c") == found.history
    half = {"float64": np.float64}.get(precision, np.float32)
    assert {array.dtype.type for array in found.arrays.values()} == {half}


@pytest.mark.parametrize("first, second", [("torch", "tf"), ("tf", "torch")])
def test_resumed_in_the_other_framework(first, second, whole, tmp_path):
    Run(tmp_path, first).until(7)
    found = Run(tmp_path, second, tmp_path).until()
    worst = ladder.largest(ladder.between(whole[first].arrays, found.arrays))
    assert worst.value <= TOLERANCES["weights"], worst
    assert [row["framework"] for row in found.history] == [PACKAGES[p].Engine.framework for p in (first, second, second)]


def test_checkpoints_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS", 0)
    run = training.run(*Run(tmp_path).arguments)
    steps = []
    for now in run:
        if now.row is None and steps:
            assert training.read_checkpoint(tmp_path).step == steps[-1]  # written before the next step
        steps.append(now.step)
        if now.step == 6:
            run.close()  # as a kill: nothing is written any more
            break
    assert training.read_checkpoint(tmp_path).step == 5


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.long), "tf"])
def test_compiled(backend, tmp_path):
    runs = []
    for compiled in (False, True):
        small = {**SPEC, "layers": [layer for layer in SPEC["layers"] if layer["name"] != "layer1"]}
        recipe = recipes.load(RECIPE | {"network": small})
        engine = PACKAGES[backend].trainer(small, recipe, compiled)
        is_compiled = hasattr(engine._net, "_orig_mod") if backend == "torch" else bool(engine._step._jit_compile)
        assert is_compiled == compiled
        runs.append(Run(tmp_path / f"{compiled}", engine=engine, network=small, epochs=1).until())
    for mine, other in zip(*(without_speed(found.history) for found in runs), strict=True):
        assert ladder.relative(mine["loss"], other["loss"]) <= TOLERANCES["losses"]
    worst = ladder.largest(ladder.between(runs[0].arrays, runs[1].arrays))
    assert worst.value <= TOLERANCES["weights"], worst


@pytest.mark.parametrize(
    "gpus, variable, installed, message",
    [
        (0, None, [], "a C++ compiler: install g++, or name another in the environment variable CXX"),
        (0, None, ["gcc"], "a C++ compiler"),
        (0, "mine", ["g++"], "a C++ compiler"),
        (0, "mine", ["mine"], ""),
        (0, None, ["g++"], ""),
        (1, None, ["g++"], "a C compiler: install gcc, or name another in the environment variable CC"),
        (1, "mine", ["gcc"], "a C compiler"),
        (1, "mine", ["mine"], ""),
        (1, None, ["clang"], ""),
    ],
)
def test_the_compiler_that_compiling_needs(gpus, variable, installed, message, monkeypatch):
    """As `triton.runtime.build` looks for it on a GPU."""
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, variable or "")
        if not variable:
            monkeypatch.delenv(name)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    recipe = recipes.load(RECIPE)
    if message:
        with pytest.raises(shared.Error, match=f"torch.compile needs {re.escape(message)}"):
            torch_impl.trainer(SPEC, recipe, compiled=True)
    else:
        torch_impl.engine._check_compiler(gpus)


def test_resumed_slots_lie_as_the_weights_do():
    """In the same order of memory, in which a step updates both."""
    recipe = recipes.load(RECIPE | {"precision": "float32", "optimizer": {"name": "adam", "learning_rate": 0.01}})
    layers = [{"name": "conv", "type": "conv", "in": 3, "out": 4, "kernel": 3}]
    engine = torch_impl.trainer({"name": "small", "input": [3, 8, 8], "layers": layers}, recipe)
    state = engine.state()
    drawn = {name: np.random.default_rng(0).random(array.shape, np.float32) for name, array in state.items()}
    engine.load(drawn, steps=1)
    weight = engine.net.conv.weight
    assert not weight.is_contiguous()
    for slot in ("exp_avg", "exp_avg_sq"):
        array = engine.optimizer.state[weight][slot]
        assert array.stride() == weight.stride() and np.array_equal(array, drawn[f"optimizer.{slot}.conv.weight"])


def test_the_optimizer_decides_what_is_kept(tmp_path):
    for optimizer, slots in (({"name": "sgd"}, 0), ({"name": "sgd", "momentum": 0.5}, 17), ({"name": "adamw"}, 34)):
        found = Run(tmp_path, optimizer={"learning_rate": 0.01, **optimizer}, epochs=1).until()
        assert len([name for name in found.arrays if name.startswith("optimizer.")]) == slots


@pytest.mark.parametrize("change", ["seed=1", "data=mnist", "batch=9", "optimizer.name=sgd", "classes=3", "steps=9"])
def test_what_a_run_cannot_change(change, whole):
    with pytest.raises(shared.Error, match="--set.*(middle of a run|a run keeps the optimiser|the length of this run)"):
        training.resumed(whole["torch"], [change])


def test_what_a_run_can_change(whole):
    recipe = training.resumed(whole["torch"], ["optimizer.learning_rate=0.5", "epochs=9", "schedule.warmup=1"])
    assert recipe["epochs"] == 9 and recipe["optimizer"]["learning_rate"] == 0.5


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_loss_that_is_no_number(backend, tmp_path):
    run = Run(tmp_path, backend, optimizer={"name": "sgd", "learning_rate": 1e200}, precision="float64")
    with pytest.raises(shared.Error) as error, np.errstate(all="ignore"):
        run.until()
    assert "the loss of step 2, in epoch 1, is" in str(error.value) and "last.safetensors is of step 0" in str(error.value)
    assert all(np.isfinite(array).all() for array in training.read_checkpoint(tmp_path).arrays.values())


def test_weights_that_are_no_number_do_not_replace_a_checkpoint(tmp_path):
    run = Run(tmp_path)
    run.until(5)
    state = run.engine.state()
    state["fc.bias"] = np.full_like(state["fc.bias"], np.nan)
    run.engine.load(state)
    with pytest.raises(shared.Error, match="fc.bias is not finite after step"):
        list(training.run(*run.arguments))
    assert training.read_checkpoint(tmp_path).step == 5


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.until(5)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "serialise", full)
    with pytest.raises(shared.Error, match="last.safetensors: cannot be written: No space left"):
        list(training.run(*run.arguments))
    assert training.read_checkpoint(tmp_path).step == 5 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_full_disk_in_the_middle_of_a_checkpoint(backend, tmp_path):
    """The system's own error, halfway through the file: what was there stays, and goes on."""
    Run(tmp_path, network=LINEAR).until(5)
    stopped, sizes = (
        Run(tmp_path, backend, tmp_path, network=LINEAR),
        [path.stat().st_size for path in tmp_path.glob("*.safetensors")],
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) // 2, before[1]))
    try:
        with pytest.raises(shared.Error, match="last.safetensors: cannot be written: .*File too large"):
            stopped.until()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert training.read_checkpoint(tmp_path).step == 5 and not list(tmp_path.glob(".*"))
    assert Run(tmp_path, backend, tmp_path, network=LINEAR).until().step == 12


def accuracies(monkeypatch, *values):
    """Let the test accuracies of runs be these, epoch by epoch."""
    following = iter(values)
    monkeypatch.setattr(training, "evaluate", lambda *_: training.Scores(1.0, next(following)))


LINEAR = {
    "name": "linear",
    "input": [1, 8, 8],
    "layers": [{"name": "flatten", "type": "flatten"}, {"name": "fc", "type": "linear", "in": 64, "out": 10}],
}
STEPS = {key: value for key, value in RECIPE.items() if key not in ("epochs", "schedule")} | {"network": LINEAR}


@pytest.mark.parametrize(
    "values, best",
    [
        ((0.5, 0.9, 0.7, 0.6), 8),  # the part of an epoch at step 6 was the best; then whole epochs at 8 and 12
        ((0.8, 0.9, 0.7, 0.6), 4),
        ((0.5, 0.4, 0.3, 0.6), 12),
        ((0.5, 0.4, 0.3, 0.2), 4),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_epoch_cut_short_is_the_best_until_it_goes_on(values, best, elsewhere, tmp_path, monkeypatch):
    accuracies(monkeypatch, *values)
    straight = Run(tmp_path, recipe=STEPS, steps=6).until()
    assert (
        weights.read_about(tmp_path / "best.safetensors")["step"]
        == max(straight.history, key=lambda r: r["test_accuracy"])["step"]
    )
    folder = tmp_path / "on" if elsewhere else tmp_path
    folder.mkdir(exist_ok=True)
    runs.copy_best(tmp_path, folder)
    found = Run(folder, resume=tmp_path, recipe=STEPS, steps=12).until()
    assert [row["test_accuracy"] for row in found.history] == [values[0], *values[2:]]
    assert runlog.best_epoch(found.history)["step"] == best == weights.read_about(folder / "best.safetensors")["step"]
    assert not (folder / training.BEST_WHOLE).exists()


def test_a_kill_between_the_last_checkpoint_and_the_best(tmp_path, monkeypatch):
    accuracies(monkeypatch, 0.5, 0.7, 0.6)
    monkeypatch.setattr(training, "write_best", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path, network=LINEAR).until()
    monkeypatch.undo()
    accuracies(monkeypatch, 0.4, 0.3)
    found = Run(tmp_path, resume=tmp_path, network=LINEAR).until()
    assert [row["test_accuracy"] for row in found.history] == [0.5, 0.4, 0.3]
    assert weights.read_about(tmp_path / "best.safetensors")["step"] == 4


def test_a_best_that_the_log_does_not_know_is_replaced(tmp_path, monkeypatch):
    """As earlier versions left it."""
    accuracies(monkeypatch, 0.5, 0.9, 0.7, 0.6)
    Run(tmp_path, recipe=STEPS, steps=6).until()
    (tmp_path / training.BEST_WHOLE).unlink()
    Run(tmp_path, resume=tmp_path, recipe=STEPS, steps=12).until()
    assert weights.read_about(tmp_path / "best.safetensors")["step"] == 8


WRONG = [None, True, -1, 0, 2, 3.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", [], [None], [[]], {}, {"name": []}]
MISSING = object()


def mutations(value, path=()):
    """(path, copy) of a JSON value for each of its places, at every depth, and each of `WRONG` there, or nothing."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in places:
        here = [((*path, key), wrong) for wrong in (*WRONG[:: 1 if len(path) < 2 else 3], MISSING)]
        for where, new in [*here, *mutations(member, (*path, key))]:
            copy = value.copy()
            copy[key] = new
            if new is MISSING:
                del copy[key]
            yield where, copy


def test_damaged_checkpoints(tmp_path, monkeypatch):
    """One clear error for any other value anywhere in the metadata, unless it makes no odds."""
    run = Run(tmp_path, network=LINEAR)
    run.until(5)
    path = tmp_path / "last.safetensors"
    arrays, about = weights.read_state(path), weights.read_about(path)
    monkeypatch.setattr(weights, "read_state", lambda _: arrays)
    tried = 0
    for where, damaged in [((), wrong) for wrong in WRONG] + list(mutations(about)):
        monkeypatch.setattr(weights, "read_about", lambda _, damaged=damaged: damaged)
        accepted = False
        try:
            checkpoint = training.read_checkpoint(path)
            recipe = training.resumed(checkpoint, [])
            training._Run(run.engine, recipe, checkpoint.spec, run.arguments[3], tmp_path, checkpoint, None)
            accepted = True
        except shared.Error as error:
            assert str(error).startswith(f"{path}: "), where
        essential = len(where) < 2 and where not in (("version",), ("random",))
        assert not (accepted and essential), (where, damaged)
        tried += 1
    assert tried > 500


def test_a_checkpoint_of_a_later_version(tmp_path):
    Run(tmp_path, network=LINEAR, epochs=1).until()
    path = tmp_path / "last.safetensors"
    arrays, about = weights.read_state(path), weights.read_about(path)
    assert about["version"] == 1
    weights.save_state(path, arrays, {"version": 2, "all": "is different"})
    with pytest.raises(shared.Error, match="last.safetensors: written by a newer version of twins.*; update twins"):
        training.read_checkpoint(path)
    del about["version"], about["random"]  # before there were versions
    weights.save_state(path, arrays, about)
    assert training.read_checkpoint(path).step == 4
    weights.save_state(path, arrays | {"fc.bias": arrays["fc.bias"] * np.nan}, about)
    with pytest.raises(shared.Error, match="fc.bias has NaN or infinite values"):
        training.read_checkpoint(path)


def test_a_checkpoint_says_who_drew(tmp_path):
    Run(tmp_path, network=LINEAR, epochs=1).until()
    for name in ("last", "best"):
        about = weights.read_about(tmp_path / f"{name}.safetensors")
        assert about["random"] == {"generator": "PCG64", "numpy": np.__version__}


def test_a_checkpoint_whose_arrays_do_not_fit(tmp_path):
    Run(tmp_path, epochs=1).until()
    path = tmp_path / "last.safetensors"
    whole, about = weights.read_state(path), weights.read_about(path)
    weights.save_state(path, {name: array for name, array in whole.items() if name != "fc.bias"}, about)
    with pytest.raises(shared.Error, match="last.safetensors: the weights do not fit the network:\n  missing: fc.bias"):
        training.read_checkpoint(tmp_path)
    weights.save_state(path, whole | {"optimizer.exp_avg.fc.bias": np.zeros(3)}, about)
    with pytest.raises(shared.Error, match="misshapen: optimizer.exp_avg.fc.bias is 3, expected 10"):
        training.read_checkpoint(tmp_path)
    weights.save_state(path, whole, about | {"step": "four"})
    with pytest.raises(shared.Error, match="not a checkpoint of a run"):
        training.read_checkpoint(tmp_path)


def test_a_part_of_an_epoch_at_the_end_is_completed(tmp_path):
    recipe = {key: value for key, value in RECIPE.items() if key not in ("epochs", "schedule")}
    straight = Run(tmp_path / "a", recipe=recipe, steps=10).until()
    Run(tmp_path / "b", recipe=recipe, steps=6).until()
    found = Run(tmp_path / "b", resume=tmp_path / "b", recipe=recipe, steps=10).until()
    assert [(row["epoch"], row["step"]) for row in found.history] == [(1, 4), (2, 8), (3, 10)]
    for mine, other in zip(without_speed(straight.history), without_speed(found.history), strict=True):
        assert mine == pytest.approx(other, rel=1e-12)


def test_a_checkpoint_that_is_none(tmp_path):
    run = Run(tmp_path)
    run.until()
    with pytest.raises(shared.Error, match="it has only weights; resume from .*last.safetensors"):
        training.read_checkpoint(tmp_path / "best.safetensors")
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(shared.Error, match="last.safetensors: not a complete safetensors file"):
        training.read_checkpoint(tmp_path)
    weights.save_state(path, weights.initial(SPEC))
    with pytest.raises(shared.Error, match="not a checkpoint of a run; to start a new run from its weights, use --init"):
        training.read_checkpoint(path)
    with pytest.raises(shared.Error, match="there is no such file"):
        training.read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("backend", PACKAGES)
def test_frozen_layers(backend, tmp_path):
    run = Run(tmp_path, backend, freeze=["backbone"], optimizer={"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1})
    before = weights.randomised(run.engine.state())
    run.engine.load(before)
    found = run.until(4).arrays
    moved = {name for name in before if not np.array_equal(before[name], found[name])}
    assert {name for name in moved if not name.startswith("optimizer.")} == {"fc.weight", "fc.bias"}
    assert {name.partition(".exp_avg")[2] for name in found if name.startswith("optimizer.exp_avg.")} == {
        ".fc.weight",
        ".fc.bias",
    }


def test_frozen_layers_are_the_same_in_both(tmp_path):
    found = {}
    for backend in PACKAGES:
        run = Run(tmp_path / backend, backend, freeze=["bn1", "layer1.0"])
        start = weights.randomised(run.engine.state())
        run.engine.load(start)
        found[backend] = run.until(6).arrays
        kept = {name for name in start if np.array_equal(start[name], found[backend][name])}
        assert kept == {name for name in start if name.startswith(("bn1.", "layer1.0."))}
    worst = ladder.largest(ladder.between(found["torch"], found["tf"]))
    assert worst.value <= TOLERANCES["weights"], worst


THAW = {"freeze": ["conv1", "bn1", "layer1"], "thaw": 2, "augmentation": {}, "epochs": 4}


def thawing(folder, backend, **changes):
    """A run that thaws after its first 8 steps, from weights that are the same in all."""
    run = Run(folder, backend, **THAW | changes)
    run.engine.load(weights.randomised(run.engine.state()))
    return run


def test_thawed_layers(tmp_path):
    straight = {}
    for backend in PACKAGES:
        run = thawing(tmp_path / backend / "straight", backend)
        start = run.engine.state()
        head = run.until(8).arrays  # the last step before the thaw
        moved = {name for name in start if not np.array_equal(start[name], head[name])}
        assert {name.rpartition("optimizer.")[2] for name in moved} == {
            *(f"{slot}fc.{kind}" for slot in ("", "exp_avg.", "exp_avg_sq.") for kind in ("weight", "bias"))
        }
        run.arguments = (*run.arguments[:5], training.read_checkpoint(run.folder))
        straight[backend] = run.until()
        assert not any(np.array_equal(start[name], straight[backend].arrays[name]) for name in network_arrays(start))
    worst = ladder.largest(ladder.between(straight["torch"].arrays, straight["tf"].arrays))
    assert worst.value <= TOLERANCES["weights"], worst


def network_arrays(arrays):
    """The names of the weights and running statistics."""
    return [name for name in arrays if not name.startswith("optimizer.")]


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_thaw_resumed_bit_for_bit(backend, tmp_path):
    straight = thawing(tmp_path / "straight", backend).until()
    # A new engine each: before the thaw, and after it.
    thawing(tmp_path / "cut", backend).until(7)
    for step in (10, None):
        found = Run(tmp_path / "cut", backend, tmp_path / "cut", **THAW).until(step)
    assert without_speed(found.history) == without_speed(straight.history)
    assert found.arrays.keys() == straight.arrays.keys()
    assert all(np.array_equal(found.arrays[name], array) for name, array in straight.arrays.items())


@pytest.mark.long
@pytest.mark.parametrize("end", [5, 8, 10])
def test_a_thaw_in_the_other_framework(end, tmp_path):
    straight = thawing(tmp_path / "straight", "torch").until().arrays
    thawing(tmp_path / "switched", "torch").until(end)
    switched = Run(tmp_path / "switched", "tf", tmp_path / "switched", **THAW).until(14)
    assert switched.step == 14
    switched = Run(tmp_path / "switched", "torch", tmp_path / "switched", **THAW).until().arrays
    worst = ladder.largest(ladder.between(switched, straight))
    assert worst.value <= TOLERANCES["weights"], worst


def test_patience_begins_at_the_thaw():
    rows = [{"epoch": n, "step": 4 * n, "test_accuracy": 0.9 if n == 1 else 0.1} for n in range(1, 8)]
    recipe = recipes.load(RECIPE | THAW | {"thaw": 3, "epochs": 9, "patience": 2})
    assert [n for n in range(1, 8) if training.is_over(recipe, rows[:n])] == [5, 6, 7]
    steps = {key: value for key, value in recipe.items() if key != "epochs"} | {"steps": 40, "thaw": 13}
    assert [n for n in range(1, 8) if training.is_over(steps, rows[:n])] == [5, 6, 7]


def test_transfer_to_other_classes(tmp_path):
    def backbone(path, spec):
        return reading.adapted(reading.fit_weights(path, spec), spec)[0]

    weights.save_state(tmp_path / "w.safetensors", weights.initial("resnet20", seed=5))
    old = weights.initial("resnet20", seed=5)
    three = networks.variant(shared.load("resnet20"), 3)
    state = backbone(tmp_path / "w.safetensors", three)
    assert set(old) - set(state) == {"fc.weight", "fc.bias"}
    assert all(np.array_equal(old[name], array) for name, array in state.items())
    assert set(backbone(tmp_path / "w.safetensors", shared.load("resnet20"))) == set(old)
    weights.save_state(tmp_path / "n.safetensors", {n: a for n, a in old.items() if not n.startswith("fc.")})
    assert set(backbone(tmp_path / "n.safetensors", shared.load("resnet20"))) == set(state)
    # A classifier of the same number of classes stays.
    weights.save_state(tmp_path / "3.safetensors", weights.initial(three, seed=6))
    assert set(backbone(tmp_path / "3.safetensors", three)) == set(old)
    weights.save_state(tmp_path / "nan.safetensors", old | {"conv1.weight": old["conv1.weight"] * np.nan})
    with pytest.raises(shared.Error, match="nan.safetensors: conv1.weight has NaN or infinite values"):
        backbone(tmp_path / "nan.safetensors", three)
    with pytest.raises(shared.Error, match="w.safetensors: the weights do not fit the network"):
        backbone(tmp_path / "w.safetensors", shared.load("resnet18"))


def test_curves(whole, tmp_path):
    rows = {"PyTorch": whole["torch"].history, "Keras": whole["tf"].history}
    plots.draw_curves(rows, tmp_path / "c.png", "two runs")
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB"))
    assert pixels.shape[1] > 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(shared.Error, match="log.jsonl: not the log of a run"):
        runlog.read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(shared.Error, match="log.jsonl: the log of a run whose first epoch is not complete"):
        runlog.read_log(tmp_path)


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")


def start(*arguments, folder, launcher=("-m",), **options):
    return subprocess.Popen(
        [sys.executable, *launcher, "twins", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
        **options,
    )


@pytest.fixture(scope="module")
def folder(twins, tmp_path_factory):
    """A folder with the recipe, and its run of 6 epochs."""
    path = tmp_path_factory.mktemp("command")
    (path / "tiny.json").write_text(json.dumps(RECIPE | {"epochs": 6, "schedule": {"name": "constant"}}))
    (path / "linear.json").write_text(json.dumps(RECIPE | {"name": "linear", "network": LINEAR}))
    status, out, error = twins("train", "tiny.json", "--out", "whole", folder=path)
    assert status == 0, error
    assert out.count("epoch ") == 7 and "Best test accuracy" in out and error == ""
    assert {path.name for path in (path / "whole").iterdir()} == {*training.FILES}
    return path


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_killed_again_and_again(kills, twins, folder):
    """`kill -9` at moments when it trains; a run in one piece ends with the same bits."""
    out = f"killed_{kills}"
    path = folder / out / "last.safetensors"
    for kill in range(kills):
        process = start("train", *(("--resume", out) if kill else ("tiny.json", "--out", out)), folder=folder)
        before = path.stat().st_mtime_ns if kill else 0
        deadline = time.monotonic() + 120
        while not path.exists() or path.stat().st_mtime_ns == before or training.read_checkpoint(path).step == 0:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status, _, error = twins("train", "--resume", out, folder=folder)
    assert status == 0 or "the run is complete" in error
    whole, found = training.read_checkpoint(folder / "whole"), training.read_checkpoint(path)
    assert all(np.array_equal(found.arrays[name], array) for name, array in whole.arrays.items())
    assert without_speed(found.history) == without_speed(whole.history)


def test_ctrl_c(twins, folder):
    log, over = folder / "stopped" / "log.jsonl", threading.Event()

    def press():
        while not (over.is_set() or (log.exists() and log.read_text().count("\n") > 1)):  # two epochs
            time.sleep(0.01)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        status, out, error = twins("train", "tiny.json", "--set", "epochs=100000", "--out", "stopped", folder=folder)
    finally:
        over.set()
        presser.join()
    step = training.read_checkpoint(folder / "stopped").step
    assert status == 130 and "epoch   1" in out and "Traceback" not in error
    assert f"interrupted after step {step:,} of 400,000; continue with: twins train --resume stopped --backend torch" in error


def test_a_full_disk(twins, folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        status, _, error = twins("train", "tiny.json", "--out", "full", folder=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2 and "last.safetensors: cannot be written: " in error and "Traceback" not in error
    assert not list((folder / "full").glob("*.safetensors")) and not list((folder / "full").glob(".*"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["tiny.json", "--backend", "all"], "--backend all: a run has one framework at a time"),
        (["tiny.json", "--backend", "keras-torch", "--compile"], "Keras on PyTorch trains on one device and compiles nothing"),
        (["tiny.json", "--backend", "keras-torch", "--devices", "2"], "Keras on PyTorch trains on one device"),
        (["digits_residal"], "no recipe is called 'digits_residal', did you mean 'digits_residual'?"),
        (["tiny.json", "--set", "bacth=3"], "unknown key 'bacth', did you mean 'batch'?"),
        (["--resume", "whole"], "whole: the run is complete, 24 steps; pass --epochs above 6 to continue"),
        (["mnist_residual", "--resume", "whole"], "whole: a checkpoint of a run of tiny, not of mnist_residual"),
        (["--resume", "whole", "--set", "batch=3"], "--set batch: cannot change in the middle of a run"),
        (["tiny.json", "--init", "x.pth"], "x.pth: there is no such file"),
        (["tiny.json", "--init", "whole/network.json"], 'whole/network.json: JSON without "weight_map"'),
        (["tiny.json", "--set", "schedule.warmup=2", "--epochs", "2"], "'warmup' is 2, expected less than the run's length, 2"),
        (["tiny.json", "--freeze", ""], "'freeze' is"),
        (["tiny.json", "--freeze", "conv1"], "tiny: 'freeze' keeps weights unchanged, so --init must name a file"),
        (["--resume", "whole", "--init", "x.pth"], "--init and --freeze are for the start of a run"),
        (["--resume", "whole/best.safetensors"], "it has only weights; resume from whole/last.safetensors"),
        (["tiny.json", "--backend", "tf", "--devices", "2", "--compile"], "--devices and --compile cannot be combined"),
        (["tiny.json", "--out", "x" * 300], "File name too long"),
        (["tiny.json", "--freeze", "con1"], "has no layer 'con1', did you mean 'conv1'?"),
        (["tiny.json", "--devices", "2"], "--devices is for tf and jax; with PyTorch: torchrun"),
        (["tiny.json", "--out", "tiny.json/x"], "tiny.json/x: cannot be created: tiny.json is a file"),
    ],
)
def test_mistakes(arguments, words, twins, folder):
    status, out, error = twins("train", *arguments, folder=folder)
    assert status == 2 and words in error and "Traceback" not in error and out == "", error


def test_a_folder_that_has_a_run_keeps_it(twins, folder):
    before = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    for name in ("whole-2", "whole-3"):
        status, out, error = twins("train", "tiny.json", "--epochs", "1", "--out", "whole", folder=folder)
        note = f"whole: already has a run, which --resume whole continues. This one goes to {name}."
        assert status == 0 and note in " ".join((out + error).split())
        assert training.read_checkpoint(folder / name).history[-1]["epoch"] == 1
        assert {path.name: path.read_bytes() for path in (folder / "whole").iterdir()} == before
    shutil.rmtree(folder / "whole-2")
    shutil.rmtree(folder / "whole-3")


def test_the_commands_own_transfer(twins, folder):
    """From a run's weights to two classes, in both frameworks, by the command."""
    ends = {}
    for backend in PACKAGES:
        options = (
            "--init",
            "whole/best.safetensors",
            "--freeze",
            "conv1,bn1",
            "--set",
            "classes=[[3],[5]]",
            "--set",
            "batch=90",
        )
        options += ("--epochs", "2", "--backend", backend)
        status, _, error = twins("train", "tiny.json", *options, folder=folder)
        assert status == 0, error
        ends[backend] = training.read_checkpoint(folder / "runs" / f"tiny-{backend}")
    for one, other in zip(*(without_speed(end.history) for end in ends.values()), strict=True):
        for key in one:
            assert ladder.relative(one[key], other[key]) <= TOLERANCES["losses"], key
    assert ends["torch"].spec["name"] == "tiny_2_classes" and ends["torch"].history[-1]["test_accuracy"] > 0.8
    start = weights.read_state(folder / "whole" / "best.safetensors")
    for end in ends.values():
        assert np.array_equal(end.arrays["bn1.running_mean"], start["bn1.running_mean"])
        assert end.arrays["fc.weight"].shape == (2, 256)


def on_two_devices(backend, spec, folder):
    """The checkpoint of a run on two CPU processes of PyTorch, or on two parts of the CPU in TensorFlow or JAX."""
    (folder / f"{spec['name']}.json").write_text(json.dumps(RECIPE | {"name": spec["name"], "network": spec, "epochs": 2}))
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m") if backend == "torch" else ("-m",)
    devices = () if backend == "torch" else ("--backend", backend, "--devices", "2")
    # Without --out: the first process finds the folder for all.
    process = start("train", f"{spec['name']}.json", *devices, folder=folder, launcher=launcher)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0 and out.count("epoch   1") == 1, error
    return training.read_checkpoint(folder / "runs" / f"{spec['name']}-{backend}")


@pytest.mark.long
@pytest.mark.parametrize("backend", [*PACKAGES, pytest.param("jax", marks=NO_JAX)])
def test_two_devices_do_what_one_does(backend, tmp_path):
    """Without batch norm."""
    layers = [{**layer, "norm": False} if layer["type"] == "basic" else layer for layer in SPEC["layers"]]
    spec = {**SPEC, "name": "plain", "layers": [layer for layer in layers if layer["type"] != "batch_norm"]}
    one, found = Run(tmp_path, network=spec, epochs=2).until(), on_two_devices(backend, spec, tmp_path)
    for mine, other in zip(without_speed(one.history), without_speed(found.history), strict=True):
        for key in mine:
            assert ladder.relative(mine[key], other[key]) <= TOLERANCES["losses"], key
    worst = ladder.largest(ladder.between(one.arrays, found.arrays))
    assert worst.value <= TOLERANCES["weights"], worst


@pytest.mark.long
def test_two_devices_with_batch_norm(whole, tmp_path):
    """Each normalises by its own share of the batch, which is not what one device does; but all frameworks do it alike."""
    torch_run = on_two_devices("torch", SPEC, tmp_path)
    for backend in ("tf", "jax") if importlib.util.find_spec("jax") else ("tf",):
        worst = ladder.largest(ladder.between(torch_run.arrays, on_two_devices(backend, SPEC, tmp_path).arrays))
        assert worst.value <= TOLERANCES["weights"], (backend, worst)
    assert ladder.relative(whole["torch"].history[0]["loss"], torch_run.history[0]["loss"]) > 1e-6


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_is_not_for_tf(rank, twins, folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", f"{rank}")
    status, _, error = twins("train", "tiny.json", "--backend", "tf", folder=folder)
    assert status == 2 and error.count("torchrun is for --backend torch") == 1 - rank  # said once


def test_a_batch_that_devices_cannot_share(tmp_path):
    run = Run(tmp_path, batch=33)
    run.engine.shares = 2
    with pytest.raises(shared.Error, match="'batch' is 33, expected a multiple of 2: each device takes an equal share"):
        next(training.run(*run.arguments))


@pytest.mark.long
def test_the_command_refuses_a_batch_that_devices_cannot_share(folder):
    process = start("train", "tiny.json", "--set", "batch=33", "--backend", "tf", "--devices", "2", folder=folder)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2 and "'batch' is 33, expected a multiple of 2: each device takes an equal share" in error


def test_a_checkpoint_that_another_process_has_left_behind(tmp_path):
    """Read before the other process has written later ones and ended: it must not replace them."""
    run = Run(tmp_path)
    steps = training.run(*run.arguments)
    while next(steps).row is None:
        pass
    stale = training.read_checkpoint(tmp_path)
    list(steps)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(shared.Error, match="another process has continued this run since; resume it again"):
        next(training.run(*Run(tmp_path).arguments[:-1], stale))
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_folder_in_use_is_refused_before_a_framework_starts(tmp_path):
    steps = training.run(*Run(tmp_path / "run").arguments)
    next(steps)
    with pytest.raises(shared.Error, match="another process is training in this folder"):
        runs.start(None, tmp_path / "run", None, [], None, "torch").__enter__()
    steps.close()
    with runs.start(None, tmp_path / "run", None, [], 99, "torch") as begun:
        assert begun.folder == tmp_path / "run"


def test_the_folder_is_locked_before_a_framework_starts(twins, folder, monkeypatch):
    """And to the end: a second process is refused at any time in between, with one message, and leaves nothing."""
    seen = []

    def second(*_, **options):
        seen.append(twins("train", "tiny.json", "--out", "locked", folder=folder))
        raise shared.Error("no framework")

    monkeypatch.setattr(backends, "start", second)
    status, _, error = twins("train", "tiny.json", "--out", "locked", folder=folder)
    assert status == 2 and "no framework" in error and not (folder / "locked").exists()  # nothing half-made
    assert seen[0].returncode == 2 and seen[0].stderr.count("\n") == 1
    assert "twins: locked: another process is training in this folder; choose another with --out" in seen[0].stderr
    # What a process that was killed meanwhile leaves is no run: its folder is used.
    (folder / "runs" / "other-torch").mkdir(parents=True)
    (folder / "runs" / "other-torch" / training.LOCK).touch()
    monkeypatch.setattr(backends, "start", lambda *_, **options: [][0])
    with pytest.raises(IndexError):
        twins("train", "tiny.json", "--set", "name=other", folder=folder)
    assert [path.name for path in (folder / "runs").glob("other*")] == ["other-torch"]


def test_two_that_resume_one_folder(twins, folder):
    shutil.copytree(folder / "whole", folder / "twice")
    before = (folder / "twice" / "last.safetensors").read_bytes()
    with training.locked(folder / "twice"):
        status, _, error = twins("train", "--resume", "twice", "--epochs", "9", folder=folder)
    assert status == 2 and error == "twins: twice: another process is training in this folder; choose another with --out\n"
    assert (folder / "twice" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_framework_starts(number, twins, folder, monkeypatch, request):
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))  # a shell's background job starts with SIGINT ignored
    monkeypatch.setattr(backends, "start", lambda *_, **options: os.kill(os.getpid(), number))
    status, out, error = twins("train", "tiny.json", "--out", "early", folder=folder)
    assert (status, out, error) == (128 + number, "", "twins: interrupted before the first step\n")
    assert not (folder / "early").exists() and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_complete_run_elsewhere(twins, folder):
    for name in ("new", "empty"):
        (folder / "empty").mkdir(exist_ok=True)
        status, out, error = twins("train", "--resume", "whole", "--out", name, folder=folder)
        assert (status, out) == (2, "") and error.count("\n") == 1
        assert "whole: the run is complete, 24 steps; pass --epochs above 6 to continue" in error
    assert not (folder / "new").exists() and not list((folder / "empty").iterdir())
    status, _, error = twins("train", "--resume", "whole", "--out", "new", "--epochs", "7", folder=folder)
    assert status == 0, error
    assert {path.name for path in (folder / "new").iterdir()} == {*training.FILES}
    assert len(runlog.read_log(folder / "new")) == 7 and len(runlog.read_log(folder / "whole")) == 6


def test_a_data_set_that_has_changed(twins, folder):
    found = datasets.load_data("digits")._asdict()
    for count, words in ((1437, "the run is complete"), (1000, "mine.npz: not the images that the run began with")):
        np.savez(folder / "mine.npz", **found | {key: found[key][:count] for key in ("x_train", "y_train")})
        if count == 1437:
            options = ("--set", "data=mine.npz", "--out", "changed", "--epochs", "2")
            assert twins("train", "linear.json", *options, folder=folder).returncode == 0
        status, _, error = twins("train", "--resume", "changed", folder=folder)
        assert status == 2 and words in error, error


def test_json(twins, folder):
    status, out, error = twins("train", "linear.json", "--epochs", "2", "--out", "json", "--json", folder=folder)
    assert status == 0 and error.count("\n") == 3 and "epoch   2  loss" in error and "into json" in error
    found = json.loads(out)
    assert found["rows"] == runlog.read_log(folder / "json") and found["best"] == runlog.best_epoch(found["rows"])
    assert (found["folder"], found["framework"], found["step"], found["steps"]) == ("json", "PyTorch", 8, 8)
    assert found["weights"] == "json/best.safetensors" and found["recipe"]["epochs"] == 2


@pytest.mark.parametrize("loss", [0.0004, 9.99996, 99.99996, 999.996, 1e9, 1e300])
@pytest.mark.parametrize("epoch", [1, 999])
def test_lines_of_epochs_fit(loss, epoch):
    row = {"epoch": epoch, "loss": loss, "test_loss": loss, "accuracy": 1.0, "test_accuracy": 1.0}
    row |= {"learning_rate": 0.000123456, "images_per_sec": 123456.0}
    for width in (80, 90, 120, 200):
        line = train._epoch(row, width)
        assert len(line) <= width and line.count("100.00%") == 2, line


def test_a_cut_last_line_of_a_log(twins, whole, tmp_path):
    """As a full disk or a power failure leaves it: the epochs before are read, and it is said."""
    rows = [json.dumps(row) for row in whole["torch"].history]
    for end in (rows[2][:70], rows[2][:-1], "{", "\0" * 30):
        (tmp_path / "log.jsonl").write_text("\n".join([*rows[:2], end]))
        notes = []
        assert runlog.read_log(tmp_path, notes.append) == whole["torch"].history[:2]
        assert notes == [f"{tmp_path / 'log.jsonl'}: the last line is truncated, and ignored"]
    ended = twins("curves", str(tmp_path), "--out", str(tmp_path / "c.png"))
    assert ended.returncode == 0 and "log.jsonl: the last line is truncated" in ended.stderr
    (tmp_path / "log.jsonl").write_text("\n".join([rows[0][:70], *rows[1:]]))
    with pytest.raises(shared.Error, match="not the log of a run"):
        runlog.read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text("\n".join([*rows, "not a row"]))
    with pytest.raises(shared.Error, match="not the log of a run"):
        runlog.read_log(tmp_path)


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """File, rename, folder: else a power failure may leave the new name with nothing in it."""
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(f"{old} -> {new}"), rename(old, new)))
    path = tmp_path / "a"
    files.write_text(path, "text")
    temporary = tmp_path / f".{os.getpid()}.a"
    assert events == [f"{temporary}", f"{temporary} -> {path}", f"{tmp_path}"]
    events.clear()
    files.append_text(path, "more")
    assert events == [f"{path}"] and path.read_text() == "textmore"
    events.clear()
    with files.atomic_folder(tmp_path / "f") as temporary:
        (temporary / "in").mkdir(parents=True)
        (temporary / "in" / "file").touch()
    assert {*events[:3]} == {f"{temporary}", f"{temporary / 'in'}", f"{temporary / 'in' / 'file'}"}
    assert events[3:] == [f"{temporary} -> {tmp_path / 'f'}", f"{tmp_path}"]


ONE_VALUE = {
    "name": "one_value",
    "input": [1, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 3, "stride": 8, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 4, "out": 10},
    ],
}


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_batch_norm_with_one_value(backend, twins, folder):
    (folder / "one.json").write_text(json.dumps(RECIPE | {"network": ONE_VALUE, "batch": 1}))
    status, out, error = twins("train", "one.json", "--backend", backend, "--out", f"one-{backend}", folder=folder)
    assert (status, out) == (1, "") and error == (
        "twins: one_value: batch norm 'bn1' has one value per channel, so no variance, with maps of 1x1 and a batch of 1; "
        "expected a batch of at least 2\n"
    )
    assert not (folder / f"one-{backend}").exists()


def test_what_each_device_normalises(tmp_path):
    run = Run(tmp_path, network=ONE_VALUE, batch=2)
    run.engine.shares = 2
    with pytest.raises(shared.checks.RunError, match="per channel on each of 2 devices, .* a batch of at least 4"):
        next(training.run(*run.arguments))
    training.prepare(recipes.load(RECIPE | {"network": ONE_VALUE, "batch": 1, "freeze": ["bn1"]}))  # it does not normalise
    training.prepare(recipes.load(RECIPE | {"batch": 1}))  # maps of 8x8


def test_a_comparison_on_one_image(twins, tmp_path):
    image, label = np.zeros((1, 8, 8), np.uint8), np.zeros(1, int)
    np.savez(tmp_path / "one.npz", x_train=image, y_train=label, x_test=image, y_test=label)
    (tmp_path / "one_value.json").write_text(json.dumps(ONE_VALUE))
    status, _, error = twins("compare", "./one_value.json", "--data", "one.npz", folder=tmp_path)
    assert status == 1 and "twins: one_value: batch norm 'bn1' has one value per channel" in error


def test_a_loss_that_is_no_number_ends_the_command(twins, folder):
    with np.errstate(all="ignore"):
        options = ("--out", "nan", "--set", "optimizer.learning_rate=1e308")
        status, _, error = twins("train", "linear.json", *options, folder=folder)
    assert status == 1 and "the run has ended, nan/last.safetensors is of step" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "schedule.warmup=5", "--epochs", "1"], "'warmup' is 5, expected less than the run's length, 4"),
        (["--set", "schedule.warmup=4", "--epochs", "1"], "'warmup' is 4, expected less than the run's length, 4"),
        (["--epochs", "99999999999"], "2147483647"),
    ],
)
def test_epochs_of_a_run_that_counts_in_steps(arguments, words, twins, folder):
    """They are refused as the recipe with as many steps would be."""
    (folder / "steps.json").write_text(json.dumps(STEPS | {"steps": 3}))
    status, out, error = twins("train", "steps.json", "--out", "steps", *arguments, folder=folder)
    assert status == 2 and words in error and out == "" and not (folder / "steps").exists()


def test_epochs_are_as_a_recipe_with_as_many_steps(twins, folder):
    """Also where the recipe's own length would not do, and when a run is resumed."""
    (folder / "steps.json").write_text(json.dumps(STEPS | {"steps": 3}))
    options = ("--set", "schedule.warmup=5", "--epochs", "2", "--out", "longer")
    status, _, error = twins("train", "steps.json", *options, folder=folder)
    assert status == 0 and training.read_checkpoint(folder / "longer").recipe["steps"] == 8, error
    status, _, error = twins("train", "--resume", "longer", "--epochs", "1", folder=folder)
    assert status == 2 and "'warmup' is 5, expected less than the run's length, 4" in error
    status, _, error = twins("train", "--resume", "longer", "--epochs", "3", folder=folder)
    assert status == 0 and training.read_checkpoint(folder / "longer").step == 12, error


def test_balanced_weights_remain_where_epochs_become_steps(tmp_path):
    (tmp_path / "steps.json").write_text(json.dumps(STEPS | {"steps": 3}))
    changes = ["class_weights=balanced"]
    with runs.start(str(tmp_path / "steps.json"), None, tmp_path / "run", changes, 2, "torch") as beginning:
        assert beginning.steps == beginning.recipe["steps"] == 8 and len(beginning.recipe["class_weights"]) == 10


def test_the_folder_of_a_run_may_be_a_dot(tmp_path, monkeypatch):
    """Another run is in it, so that this one goes to a folder beside it, whose name has a number."""
    (tmp_path / "runs" / "inside").mkdir(parents=True)
    (tmp_path / "runs" / training.LAST).touch()
    for place, out in (("runs", "."), ("runs/inside", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert runs._folder(Path(out), None, "tiny-torch", 0) == (tmp_path / "runs-2", False)
    monkeypatch.chdir(tmp_path)
    assert runs._folder(Path("."), None, "tiny-torch", 0) == (Path("."), False)


def test_a_checkpoint_by_another_name_has_no_run_beside_it(tmp_path):
    words = "epoch3.safetensors: there is no .*last.safetensors to continue; choose a folder with --out"
    (tmp_path / "epoch3.safetensors").touch()
    with pytest.raises(shared.Error, match=words):
        runs._folder(None, tmp_path / "epoch3.safetensors", "tiny-torch", 0)
    assert runs._folder(tmp_path / "on", tmp_path / "epoch3.safetensors", "tiny-torch", 0) == (tmp_path / "on", False)


def test_a_path_with_a_space_is_quoted_where_it_is_part_of_a_command(tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / training.LAST).touch()
    (tmp_path / "steps.json").write_text(json.dumps(STEPS | {"steps": 3}))
    with runs.start(str(tmp_path / "steps.json"), None, tmp_path / "my run", [], None, "torch") as beginning:
        assert f"which --resume '{tmp_path}/my run' continues. This one goes to {tmp_path}/my run-2." in beginning.notes[0]
    lone = tmp_path / "my run/weights.safetensors"
    weights.save_state(lone, weights.initial(SPEC))
    with pytest.raises(shared.Error, match=f"use --init '{lone}'"):
        training.read_checkpoint(lone)


@pytest.mark.parametrize("more", [{}, {"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}])
def test_a_rank_that_is_no_number(more, twins, folder, monkeypatch):
    for name, value in {"RANK": "x", "LOCAL_WORLD_SIZE": "y", **more}.items():
        monkeypatch.setenv(name, value)
    status, _, error = twins("train", "linear.json", "--epochs", "1", "--out", f"rank-{len(more)}", folder=folder)
    assert "Traceback" not in error and status == (2 if more else 0)
    assert not more or "TORCHELASTIC_RUN_ID is set, but RANK is 'x': start with torchrun, or unset both" in error
    assert twins("list", "--json").returncode == 0


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.long
def test_a_signal_to_one_of_two_processes_ends_both(folder):
    process = start("train", "tiny.json", "--epochs", "99999", "--out", "two", folder=folder, launcher=(*TORCHRUN, "-m"))
    log, deadline = folder / "two" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", f"{process.pid}"], capture_output=True, text=True).stdout.split()
    (second,) = [pid for pid in children if b"\0RANK=1\0" in open(f"/proc/{pid}/environ", "rb").read()]
    os.kill(int(second), signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    step = training.read_checkpoint(folder / "two").step
    assert error.count(f"twins: interrupted after step {step:,} of 399,996; continue with: twins train --resume two") == 1
    assert step > 0 and "IndexError" not in error and "RuntimeError" not in error


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_of_two_processes_is_heard(rank, folder):
    """One finds no recipe; the other, which waits for it, is ended at once."""
    command = f'if [ $RANK = {rank} ]; then cd whole; fi; exec "{sys.executable}" -m twins train ./tiny.json --out "$0"'
    out, started = folder / f"heard-{rank}", time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, "--no-python", "bash", "-c", command, out],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD},
    )  # fmt: skip
    _, error = process.communicate(timeout=100)
    assert process.returncode and "twins: ./tiny.json: there is no such file" in error
    assert time.monotonic() - started < 29  # torchrun kills those that do not end within 30 s


def test_two_runs_in_one_folder(tmp_path):
    run = Run(tmp_path)
    first = training.run(*run.arguments)
    next(first)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(shared.Error, match="another process is training in this folder"):
        next(training.run(*Run(tmp_path).arguments))
    assert (tmp_path / "last.safetensors").read_bytes() == before
    first.close()
    next(training.run(*Run(tmp_path).arguments))  # it is free again


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hear = runlog.tensorboard(tmp_path)
    seen = list(training.run(*Run(tmp_path, epochs=2).arguments))
    for now in seen:
        hear(now)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    assert events.Scalars("loss")[7].value == pytest.approx(seen[-1].loss)
    accuracies = [event.value for event in events.Scalars("epoch/test_accuracy")]
    assert accuracies == pytest.approx([row["test_accuracy"] for row in training.read_checkpoint(tmp_path).history])

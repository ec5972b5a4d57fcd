"""Training in mixed_float16: the loss is scaled by the rule of PyTorch's GradScaler, in both frameworks."""

import json

import numpy as np
import pytest
import torch
from test_options import SPEC

import keras_impl
import torch_impl
from keras_impl import optimizers
from shared import recipes, weights
from twins import batches, ladder, training
from twins.loading import Loader

TOLERANCE = ladder.TOLERANCES["mixed_float16"]["losses"]
PACKAGES = {"torch": torch_impl, "tf": keras_impl}
RECIPE = {
    "name": "half",
    "network": SPEC,
    "data": "digits",
    "batch": 60,
    "steps": 20,
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "precision": "mixed_float16",
}
ADAM = {"name": "adam", "learning_rate": 0.002}
# name: (changes of the recipe, scale and steps since it changed at the start)
CASES = {
    "as it starts": ({}, (2.0**16, 0)),
    "overflow and growth": ({}, (2.0**24, 1985)),
    "adam": ({"optimizer": ADAM}, (2.0**24, 0)),
    "clipping, accumulation, average": ({"accumulate": 2, "ema": 0.9, "optimizer": ADAM | {"clip_norm": 0.5}}, (2.0**24, 0)),
}


def run(package, recipe, start, steps=20):
    """(losses, [(scale, steps since, skipped)] after each step, states before and after each step) of an engine."""
    spec, data = training.prepare(recipe)
    engine = package.trainer(spec, recipe)
    engine.load(engine.state() | {weights.SCALER: np.array([*start, 0], np.float32)})
    stream, losses, states = batches.stream(recipe, spec, data, 0, Loader()), [], [engine.state()]
    for _ in range(steps):
        losses.append(engine.step(*next(stream), recipe["optimizer"]["learning_rate"])[0])
        states.append(engine.state())
    return losses, [tuple(state[weights.SCALER].tolist()) for state in states], states


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long) if case in ("as it starts", "adam") else case for case in CASES]
)
def test_rung_5(case):
    changes, start = CASES[case]
    recipe = recipes.load(RECIPE | changes)
    (losses, scales, _), (others, same, _) = (run(package, recipe, start) for package in PACKAGES.values())
    assert scales == same and all(map(np.isfinite, losses))
    assert max(ladder.relative(a, b) for a, b in zip(losses, others, strict=True)) <= TOLERANCE
    skipped = scales[-1][2]
    assert skipped == 0 if case == "as it starts" else 0 < skipped < 19
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_a_skipped_step_changes_nothing(package):
    """Neither weights nor slots nor the average; running statistics do follow, as in PyTorch."""
    recipe = recipes.load(RECIPE | {"ema": 0.9, "optimizer": ADAM})
    _, scales, states = run(package, recipe, (2.0**40, 1999), steps=2)
    assert scales == [(2.0**40, 1999, 0), (2.0**39, 0, 1), (2.0**38, 0, 2)]
    for name, array in states[0].items():
        follows = ".running_" in name and not name.startswith("ema.") and "downsample" not in name  # which nothing uses
        assert name == weights.SCALER or np.array_equal(array, states[2][name]) != follows, name


def test_adam_counts_the_steps_that_it_takes():
    """Its first one after skipped ones is a whole one: rate x the sign of the gradient. So it is after a resume."""
    recipe = recipes.load(RECIPE | {"optimizer": ADAM})
    spec, data = training.prepare(recipe)
    for package in PACKAGES.values():
        engine = package.trainer(spec, recipe)
        before = engine.state() | {weights.SCALER: np.array([2.0**10, 0, 7], np.float32)}
        engine.load(before, 7)
        engine.step(*batches.batch(recipe, spec, data, 7), 0.002)
        moved = np.abs(engine.state()["fc.weight"] - before["fc.weight"])
        assert np.median(moved) == pytest.approx(0.002, rel=1e-2)


def test_the_rule_is_pytorchs():
    """Beside PyTorch's own: 6,000 steps, of which some are skipped."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer, theirs, ours = torch.optim.SGD([weight], 0.1), torch.amp.GradScaler("cpu"), optimizers.GradScaler()
    for step in range(6000):
        is_taken = step not in (3, 4, 2500, 4600)
        weight.grad = torch.tensor([1.0 if is_taken else [np.inf, np.nan][step % 2]])
        theirs.scale(torch.ones(()))
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.update(is_taken)
        kept = theirs.state_dict()
        assert (ours.scale, ours.since) == (kept["scale"], kept["_growth_tracker"]), step
    assert ours.skipped == 4 and ours.scale == 2.0**14


def test_a_run_switches_framework(tmp_path):
    """The scale goes with it, under one name."""
    recipe = recipes.load(RECIPE | {"steps": 6, "optimizer": ADAM})
    spec, data = training.prepare(recipe)
    engines = {name: package.trainer(spec, recipe) for name, package in PACKAGES.items()}
    start = engines["torch"].state() | {weights.SCALER: np.array([2.0**24, 0, 0], np.float32)}
    ends = {}
    for first, second in (("torch", "torch"), ("torch", "tf"), ("tf", "torch")):
        engines[first].load(start)
        folder = tmp_path / f"{first}-{second}"
        seen = []
        for now in training.run(engines[first], recipe, spec, data, folder, stop=lambda seen=seen: len(seen) >= 3):
            seen.append(now)
        checkpoint = training.read_checkpoint(folder)
        assert checkpoint.step == 3 and checkpoint.arrays[weights.SCALER][2] > 0
        engines[second].load(checkpoint.arrays, 3)
        list(training.run(engines[second], recipe, spec, data, folder, checkpoint))
        ends[first, second] = training.read_checkpoint(folder)
    (one, *others) = ends.values()
    for other in others:
        assert np.array_equal(one.arrays[weights.SCALER], other.arrays[weights.SCALER])
        assert ladder.relative(one.history[-1]["loss"], other.history[-1]["loss"]) <= TOLERANCE


def test_another_precision_in_the_middle(twins, tmp_path):
    """From float32 the scale starts afresh; weights alone are no checkpoint."""
    recipe = RECIPE | {"steps": 2, "precision": "float32", "optimizer": {"name": "sgd", "learning_rate": 0.01}}
    (tmp_path / "half.json").write_text(json.dumps(recipe))
    assert twins("train", "half.json", "--out", "run", folder=tmp_path).returncode == 0
    change = ("--set", "precision=mixed_float16", "--set", "steps=4")
    status, _, error = twins("train", "--resume", "run", *change, "--backend", "tf", folder=tmp_path)
    assert status == 0, error
    assert training.read_checkpoint(tmp_path / "run").arrays[weights.SCALER].tolist() == [2.0**16, 2, 0]
    status, _, error = twins("train", "--resume", "run/best.safetensors", folder=tmp_path)
    assert status == 2 and "it has only weights; resume from run/last.safetensors" in error

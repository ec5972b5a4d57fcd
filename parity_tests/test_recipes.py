"""Recipes: what is in them, what is refused, and the learning rates that they give."""

import json

import numpy as np
import pytest
import torch

import shared
from shared import networks, recipes, shapes
from twins import datasets, training

PLAIN = {
    "name": "mine",
    "network": "mnist_residual",
    "data": "digits",
    "batch": 64,
    "epochs": 6,
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
}


def changed(*changes, recipe=PLAIN):
    return recipes.load(recipes.changed(recipe, changes))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe(name):
    recipe = recipes.load(name)
    assert recipe["name"] == name and recipe["source"] and recipe["title"]
    network = recipes.network(recipe)
    assert network["preprocessing"] and len(shapes.layers(network)[-1].shape) == (3 if networks.is_dense(network) else 1)
    rates = [recipes.learning_rate(recipe, step, 390) for step in range(0, recipes.length(recipe, 390), 390)]
    highest = recipe["optimizer"]["learning_rate"]
    if "warmup" in recipe["schedule"] or recipe["schedule"]["name"] == "one_cycle":
        assert rates[0] < 0.9 * max(rates) and 0.9 * highest < max(rates) <= highest
    else:
        assert rates[0] == max(rates) == highest


def test_the_recipes_of_the_sources():
    assert {"mnist_residual", "cifar10_resnet", "cifar100_resnet18", "cifar100_resnet34", "digits_residual"} < {
        *recipes.names()
    }
    paper = recipes.load("cifar10_resnet20")
    assert [recipes.learning_rate(paper, step, 390) for step in (0, 31999, 32000, 47999, 48000, 63999)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    for other in ("resnet56", "plain20", "plain56"):
        theirs = recipes.load(f"cifar10_{other}")
        assert {k: v for k, v in theirs.items() if k not in ("name", "title", "network")} == {
            k: v for k, v in paper.items() if k not in ("name", "title", "network")
        }
    listing = recipes.load("cifar10_resnet")
    assert [recipes.learning_rate(listing, 500 * epoch, 500) for epoch in (19, 20, 79)] == pytest.approx(
        [1e-3, 1e-3 / 3, 1e-3 / 27]
    )


def pytorchs(optimizer, schedule, warmup, length):
    """PyTorch's scheduler of a schedule."""
    from torch.optim import lr_scheduler as theirs

    kinds = {
        "constant": lambda: theirs.ConstantLR(optimizer, 1.0, 1),
        "step": lambda: theirs.StepLR(optimizer, schedule["every"], 1 / schedule["divide_by"]),
        "multi_step": lambda: theirs.MultiStepLR(optimizer, schedule["milestones"], 1 / schedule["divide_by"]),
        "cosine": lambda: theirs.CosineAnnealingLR(optimizer, length - warmup),
        "linear": lambda: theirs.LinearLR(
            optimizer, schedule.get("start_factor", 1), schedule.get("end_factor", 0), length - warmup
        ),
    }
    if not warmup:
        return kinds[schedule["name"]]()
    rising = theirs.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    return theirs.SequentialLR(optimizer, [rising, kinds[schedule["name"]]()], [warmup])


@pytest.mark.parametrize("unit", ["steps", "epochs"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant"},
        {"name": "constant", "warmup": 4},
        {"name": "step", "every": 3, "divide_by": 3},
        {"name": "multi_step", "milestones": [2, 7], "divide_by": 10},
        {"name": "cosine"},
        {"name": "cosine", "warmup": 3},
        {"name": "linear"},
        {"name": "linear", "start_factor": 0.5, "end_factor": 0.2, "warmup": 3},
    ],
)
def test_learning_rates_are_pytorchs(schedule, unit):
    recipe = {unit: 11, "optimizer": {"learning_rate": 0.3}, "schedule": schedule}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.3)
    warmup = schedule.get("warmup", 0)
    scheduler = pytorchs(optimizer, schedule, warmup, 11)
    for number in range(11):
        steps = [number] if unit == "steps" else [5 * number, 5 * number + 4]
        for step in steps if unit == "steps" or number >= warmup else ():  # a warm-up rises by steps: see below
            assert recipes.learning_rate(recipe, step, 5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("steps", [1, 2, 10, 37])
@pytest.mark.parametrize("options", [{}, {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 100.0}])
@pytest.mark.parametrize("length", ["steps", "epochs"])
def test_one_cycle_is_pytorchs(length, options, steps):
    recipe = {length: steps, "optimizer": {"learning_rate": 0.3}, "schedule": {"name": "one_cycle", **options}}
    steps *= 4 if length == "epochs" else 1
    if options.get("pct_start", 0.3) * steps == 1:  # PyTorch divides by zero here
        assert [recipes.learning_rate(recipe, step, 4) for step in (0, 1)] == pytest.approx([0.3, 0.3 / 1000])
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, steps, cycle_momentum=False, **options)
    for step in range(steps):
        assert recipes.learning_rate(recipe, step, 4) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


def test_a_rate_that_gets_small():
    recipe = {"steps": 3000, "optimizer": {"learning_rate": 1.0}, "schedule": {"name": "step", "every": 1, "divide_by": 2.0}}
    assert [recipes.learning_rate(recipe, step, 1) for step in (1, 3, 2500)] == [0.5, 0.125, 0]


def test_milestones_count_from_the_start_of_a_warm_up():
    recipe = {"steps": 9, "optimizer": {"learning_rate": 1.0}}
    recipe["schedule"] = {"name": "multi_step", "milestones": [5], "divide_by": 10, "warmup": 2}
    assert [recipes.learning_rate(recipe, step, 1) for step in range(7)] == [0.5, 1, 1, 1, 1, 0.1, 0.1]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_warm_up_in_epochs_is_pytorchs_of_as_many_steps(epochs):
    recipe = {"epochs": 5, "optimizer": {"learning_rate": 0.3}, "schedule": {"name": "constant", "warmup": epochs}}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.3)
    scheduler = pytorchs(optimizer, recipe["schedule"], 4 * epochs, 20)
    for step in range(20):
        assert recipes.learning_rate(recipe, step, 4) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_changes():
    assert changed("optimizer.learning_rate=0.01")["optimizer"] == {"name": "sgd", "learning_rate": 0.01}
    assert changed("precision=float64")["precision"] == "float64"
    assert changed("data=1.npz")["data"] == "1.npz"
    assert changed('freeze=["backbone"]', "classes=[[3],[5, 6]]")["classes"] == [[3], [5, 6]]
    assert "epochs" not in changed("steps=9")
    old = changed("optimizer.momentum=0.9", "optimizer.weight_decay=0.1")
    new = changed("optimizer.name=adam", recipe=old)
    assert new["optimizer"] == {"name": "adam", "learning_rate": 0.1, "weight_decay": 0.1}
    assert recipes.load(PLAIN | {"optimizer": {"name": "adam", "learning_rate": 1, "betas": [0, 0]}})["optimizer"] == {
        "name": "adam", "learning_rate": 1.0, "betas": [0.0, 0.0]
    }  # fmt: skip
    assert all(type(number) is float for number in changed("optimizer.learning_rate=1")["optimizer"].values() if number == 1)
    assert PLAIN["optimizer"] == {"name": "sgd", "learning_rate": 0.1}


@pytest.mark.parametrize(
    "changes, words",
    [
        (["optimiser.learning_rate=1"], "unknown key 'optimiser', did you mean 'optimizer'?"),
        (["optimizer.learning_rat=1"], "optimizer: unknown key 'learning_rat', did you mean 'learning_rate'?"),
        (["optimizer.learning_rate=fast"], "'learning_rate' is \"fast\", expected a number above 0"),
        (["optimizer.learning_rate=NaN"], "'learning_rate' is NaN, expected a number above 0"),
        (["optimizer.name=adma"], "optimizer: 'name' is \"adma\", did you mean 'adam'?; expected sgd, adam, adamw"),
        (["optimizer.nesterov=true"], "needs a 'momentum' above 0"),
        (["optimizer=sgd"], "'optimizer' is \"sgd\", expected an object"),
        (["schedule.every=3"], "schedule: unknown key 'every'"),
        (["schedule.name=step"], "schedule: the keys 'every', 'divide_by' are missing"),
        (["schedule.name=multi_step", "schedule.divide_by=10", "schedule.milestones=[5,2]"], "each larger than the one before"),
        (["data="], "'data' is \"\", expected a string that is not empty"),
        (["batch=0"], "'batch' is 0, expected a whole number of at least 1"),
        (["epochs=1.5"], "'epochs' is 1.5"),
        (["precision=float16"], 'expected one of "float32", "float64", "mixed_bfloat16", "mixed_float16"'),
        (["augmentation.pad=-1"], "augmentation: 'pad' is -1"),
        (["augmentation.rotate=3"], "augmentation: unknown key 'rotate'"),
        (["network=resnet21"], "no network is called 'resnet21'"),
        (["preprocessing.scale=255"], "preprocessing: the keys 'channels', 'mean', 'std' are missing"),
        (["classes=1"], "'classes' is 1, expected a number of at least 2"),
        (["classes=[[3],[3]]"], "'classes' is"),
        (['freeze=["block9"]'], "has no layer 'block9', did you mean 'block"),
        (['freeze=["conv1","block1","conv2","block2","fc"]'], "names every layer with weights, so nothing is left to train"),
        (["thaw=2"], "'thaw' says when the layers in 'freeze' begin to train, but 'freeze' names none"),
        (['freeze=["conv1"]', "thaw=6"], "'thaw' is 6, expected less than the run's length, 6"),
        (["optimizer.name=[1]"], "optimizer: 'name' is [1]"),
        (["schedule.name={}"], "schedule: 'name' is {}"),
        (["optimizer.weight_decay=false"], "'weight_decay' is false, expected a number of at least 0"),
        (["schedule.warmup=6"], "schedule: 'warmup' is 6, expected less than the run's length, 6"),
        (["name=../x"], "'name' is \"../x\", expected a word of letters"),
        (["batch=" + "[" * 5000], "'batch' is \"[[["),
        (["batch"], "--set batch: expected key=value"),
        (["batch.size=3"], "--set batch.size=3: recipes have no such key"),
        (["a.b.c=3"], "--set a.b.c=3: recipes have no such key"),
    ],
)
def test_changes_that_are_wrong(changes, words):
    with pytest.raises(shared.Error) as error:
        changed(*changes, recipe=recipes.load(PLAIN))
    assert words in str(error.value)


def test_a_recipe_of_another_kind(tmp_path):
    with pytest.raises(shared.Error, match="no recipe is called 'digit_residual', did you mean 'digits_residual'?"):
        recipes.load("digit_residual")
    with pytest.raises(shared.Error, match="x.json: there is no such file"):
        recipes.load(tmp_path / "x.json")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**PLAIN, "steps": 4}))
    with pytest.raises(shared.Error, match="mine.json: expected either the key 'epochs' or the key 'steps'"):
        recipes.load(path)
    path.write_text("[]")
    with pytest.raises(shared.Error, match="a recipe is a JSON object"):
        recipes.load(path)
    path.write_text('{"name": "mine", "network": "lenet"}')
    with pytest.raises(shared.Error, match="the keys 'data', 'batch', 'optimizer' are missing"):
        recipes.load(path)
    path.write_text(json.dumps(PLAIN))
    assert recipes.load(path)["schedule"] == {"name": "constant"}
    with pytest.raises(shared.Error, match="ends in a map"):
        recipes.load({**PLAIN, "network": {"name": "map", "input": [1, 8, 8], "layers": [{"name": "relu", "type": "relu"}]}})


def test_another_number_of_classes():
    two = networks.variant(shared.load("drn_c_26"), 2)
    assert two["name"] == "drn_c_26_2_classes" and shapes.layers(two)[-1].shape == (2,)
    assert networks.variant(shared.load("resnet20"), 10) == shared.load("resnet20")
    assert recipes.network(changed("classes=[[3],[5],[0]]"))["layers"][-1]["out"] == 3
    with pytest.raises(shared.Error, match="has no classifier"):
        networks.variant({"name": "x", "input": [1, 8, 8], "layers": [{"name": "f", "type": "flatten"}]}, 2)


def test_what_is_frozen():
    recipe = changed('freeze=["block1","conv1"]')
    assert recipes.frozen(recipe, recipes.network(recipe)) == ["block1", "conv1"]
    recipe = changed('freeze=["backbone"]')
    frozen = recipes.frozen(recipe, recipes.network(recipe))
    assert frozen[0] == "conv1" and frozen[-1] == "flatten" and "fc" not in frozen
    recipe = changed('network="resnet18"', 'freeze=["layer1.1"]')
    assert recipes.frozen(recipe, recipes.network(recipe)) == ["layer1.1"]


def test_data_of_classes():
    plain = datasets.load_data("digits")
    _, chosen = training.prepare(changed("classes=[[3],[5,8]]"))
    assert len(chosen.x_train) == np.isin(plain.y_train, [3, 5, 8]).sum()
    where = np.flatnonzero(np.isin(plain.y_test, [3, 5, 8]))
    assert np.array_equal(chosen.x_test, plain.x_test[where])
    assert np.array_equal(chosen.y_test, np.where(plain.y_test[where] == 3, 0, 1))
    with pytest.raises(shared.Error, match="'classes': digits has no images of label 12"):
        training.prepare(changed("classes=[[3],[12]]"))


@pytest.mark.parametrize(
    "change, words",
    [
        ("classes=5", "labels go up to 9, mnist_residual_5_classes has 5 classes, counted from 0"),
        ("network=resnet20", "its images are grey, resnet20 expects colour"),
        ("data=x.npz", "x.npz: there is no such file"),
        ("batch=2000", "'batch' is 2,000, but digits has 1,437 images to train on"),
        (
            'preprocessing={"channels": "L", "scale": 255, "mean": [0], "std": [1], "resize": 40}',
            "digits: layer 'fc'",
        ),
    ],
)
def test_data_that_do_not_fit(change, words):
    with pytest.raises(shared.Error) as error:
        training.prepare(changed(change))
    assert words in str(error.value)

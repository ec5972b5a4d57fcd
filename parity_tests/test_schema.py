"""`twins schema`: an editor that goes by it takes what the checks take, and refuses what they refuse."""

import copy
import json

import pytest
from jsonschema import Draft202012Validator

import shared
from shared import networks, recipes, spec
from shared.checks import Error
from twins import schema

SPECS, RECIPES = (Draft202012Validator(schema.spec_schema()), Draft202012Validator(schema.recipe_schema()))


def test_they_are_schemas():
    for validator in (SPECS, RECIPES):
        Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("name", shared.names())
def test_every_network_is_valid(name):
    SPECS.validate(json.loads((networks.SPECS / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid(name):
    RECIPES.validate(json.loads((recipes.RECIPES / f"{name}.json").read_text()))


def test_every_type_and_key_is_in_it():
    kinds = {kind["properties"]["type"]["const"]: kind for kind in SPECS.schema["$defs"]["layers"]["items"]["oneOf"]}
    assert set(kinds) == set(spec.TYPES)
    for kind, keys in spec.TYPES.items():
        assert set(kinds[kind]["properties"]) == {"name", "type", *" ".join(keys).split()}


WRONG = {
    "an unknown key": lambda s: s["layers"][0] | {"strde": 2},
    "a value of another kind": lambda s: s["layers"][0] | {"stride": "2"},
    "a value out of range": lambda s: s["layers"][0] | {"kernel": 0},
    "an unknown type": lambda s: s["layers"][0] | {"type": "convolution"},
    "a shortcut of another block": lambda s: s["layers"][4] | {"shortcut": "shortcut_gate"},
    "a missing key": lambda s: {k: v for k, v in s["layers"][0].items() if k != "out"},
    "a padding that is no number": lambda s: s["layers"][0] | {"padding": "valid"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_checks_refuse_the_schema_refuses(wrong):
    given = copy.deepcopy(shared.load("resnet18"))
    assert SPECS.is_valid(given)
    changed = WRONG[wrong](given)
    given["layers"] = [changed if layer["name"] == changed["name"] else layer for layer in given["layers"]]
    assert not SPECS.is_valid(given)
    with pytest.raises(Error):
        shared.load(given)


@pytest.mark.parametrize(
    "classes, valid",
    [("cifar10", True), ("mine.txt", True), (["a", "b"], True), ("", False), ([], False), ([""], False), (3, False)],
)
def test_names_of_classes(classes, valid):
    given = shared.load("resnet20") | {"classes": classes}
    assert SPECS.is_valid(given) == valid == bool(spec.SPEC_VALUES["classes"].accepts(classes))


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"name": "sgd"}},
        {"optimizer": {"name": "adam", "learning_rate": 0.1, "momentum": 0.9}},
        {"schedule": {"name": "step"}},
        {"steps": 5},
        {"precision": "float16"},
        {"augmentation": {"mirror": True}},
        {"classes": 1},
        {"classes": ["cat"]},
        {"classes": ["cat", ""]},
        {"channels": 0},
        {"weights_key": ""},
    ],
)
def test_a_recipe_that_the_checks_refuse(change):
    recipe = json.loads((recipes.RECIPES / "digits_residual.json").read_text())
    assert RECIPES.is_valid(recipe) and not RECIPES.is_valid(recipe | change)
    with pytest.raises(Error):
        recipes.load(recipe | change)

"""Recipes of training runs: finding, reading, checking and changing the JSON files, and what they make of a network.

A recipe is a dictionary as in `recipes/*.json`. Its length is in "epochs" or in "steps", and its schedule counts in the same
unit, from 0. An epoch has whole batches only.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

from . import networks, shapes
from .checks import BOOLEAN, FRACTION, NAME, POSITIVE, Error, Value, check_keys, nearest, one_of, whole
from .files import read_json
from .spec import classifier, unroll

RECIPES = Path(__file__).parent / "recipes"
PRECISIONS = ("float32", "float64", "mixed_bfloat16")
BACKBONE = "backbone"  # of "freeze": everything but the classifier

Recipe = dict[str, Any]  # a checked recipe

# name: (required keys, optional keys)
OPTIMIZERS = {
    "sgd": ("learning_rate", "momentum nesterov weight_decay"),
    "adam": ("learning_rate", "betas eps weight_decay"),
    "adamw": ("learning_rate", "betas eps weight_decay"),
}
SCHEDULES = {
    "constant": ("", "warmup"),
    "step": ("every divide_by", "warmup"),
    "multi_step": ("milestones divide_by", "warmup"),
    "cosine": ("", "warmup"),
}
REQUIRED = "name network data batch optimizer"
OPTIONAL = "title source preprocessing augmentation epochs steps schedule seed precision classes init freeze"
AUGMENTATIONS = "pad flip"


def _are_groups(value: Any) -> bool:
    """Whether it is lists of labels, none of them in two: [[3], [5]]."""
    if type(value) is not list or len(value) < 2 or not all(type(group) is list and group for group in value):
        return False
    labels = sum(value, [])
    return all(type(label) is int and label >= 0 for label in labels) and len({*labels}) == len(labels)


_TEXT = Value(lambda v: type(v) is str and v, "a text", {"type": "string", "minLength": 1})
_LABELS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}

# key: what its value must be
VALUES = {
    "name": NAME,
    **dict.fromkeys(("title", "source", "data", "init"), _TEXT),
    **dict.fromkeys(("batch", "epochs", "steps", "every"), whole(1)),
    **dict.fromkeys(("seed", "pad", "warmup"), whole(0)),
    **dict.fromkeys(("flip", "nesterov"), BOOLEAN),
    **dict.fromkeys(("learning_rate", "eps"), POSITIVE),
    "preprocessing": Value(lambda v: type(v) is dict, "an object", {"$ref": "#/$defs/preprocessing"}),
    "augmentation": Value(lambda v: type(v) is dict, "an object", {"$ref": "#/$defs/augmentation"}),
    "optimizer": Value(lambda v: type(v) is dict, 'an object with a "name"', {"$ref": "#/$defs/optimizer"}),
    "schedule": Value(lambda v: type(v) is dict, 'an object with a "name"', {"$ref": "#/$defs/schedule"}),
    "network": Value(
        lambda v: type(v) in (str, dict) and v, "a name, the path of a spec, or a spec", {"type": ["string", "object"]}
    ),
    "precision": one_of(*PRECISIONS),
    "classes": Value(
        lambda v: whole(2).accepts(v) or _are_groups(v),
        "a number of at least 2, or for each class a list of labels",
        {"anyOf": [{"type": "integer", "minimum": 2}, {"type": "array", "minItems": 2, "items": _LABELS}]},
    ),
    "freeze": Value(
        lambda v: type(v) is list and all(type(word) is str and word for word in v),
        f'a list of layers, or ["{BACKBONE}"]',
        {"type": "array", "items": {"type": "string", "minLength": 1}},
    ),
    "momentum": FRACTION,
    "weight_decay": Value(
        lambda v: POSITIVE.accepts(v) or (type(v) in (int, float) and v == 0),
        "a number of at least 0",
        {"type": "number", "minimum": 0},
    ),
    "betas": Value(
        lambda v: type(v) is list and len(v) == 2 and all(map(FRACTION.accepts, v)),
        "two numbers of at least 0, below 1",
        {"type": "array", "minItems": 2, "maxItems": 2, "items": FRACTION.schema},
    ),
    "divide_by": Value(lambda v: POSITIVE.accepts(v) and v > 1, "a number above 1", {"type": "number", "exclusiveMinimum": 1}),
    "milestones": Value(
        lambda v: type(v) is list and v and all(map(whole(1).accepts, v)) and v == sorted({*v}),
        "whole numbers of at least 1, each larger than the one before",
        {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "integer", "minimum": 1}},
    ),
}


def names():
    """Names of all recipes that come with the project, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def load_recipe(recipe):
    """The checked recipe of a name, of the path of a file ending in `.json`, or of a dictionary, with nothing left open.

    What it does not say is a constant schedule, seed 0, float32, no augmentation, nothing frozen.
    Raises `Error`, with file and key, when it is none of these or describes no run.
    """
    if isinstance(recipe, dict):
        found, origin = recipe, f"recipe {recipe.get('name', '')!r}"
    else:
        path, origin = Path(recipe), f"{recipe}"
        if path.suffix != ".json":
            path = RECIPES / f"{path.name}.json"
            if path.stem != origin or not path.is_file():
                near = nearest(origin, names()) or f"; there are {', '.join(names())}, and files ending in .json"
                raise Error(f"no recipe is called {origin!r}{near}")
            origin = f"recipe {origin!r}"
        found = read_json(path, recipe)
    try:
        if not isinstance(found, dict):
            raise Error('a recipe is a JSON object with "name", "network", "data", "batch", "optimizer" and "epochs"')
        found = {"augmentation": {}, "schedule": {"name": "constant"}, "seed": 0, "precision": "float32", "freeze": []} | found
        _check(found)
        network(found)
    except Error as error:
        raise Error(f"{origin}: {error}") from None
    for part in ("optimizer", "schedule"):
        found[part] = {key: _float(value) if key in _FLOATS else value for key, value in found[part].items()}
    return found


_FLOATS = ("learning_rate", "momentum", "weight_decay", "betas", "eps", "divide_by")


def _float(value):
    """Numbers as both frameworks take them, who want no whole ones."""
    return [float(number) for number in value] if isinstance(value, list) else float(value)


def changed(recipe, changes):
    """The recipe with changes such as "optimizer.learning_rate=0.01": a dotted key, and a value in JSON or a text.

    Where the name of an optimiser or a schedule changes, the keys that the new one does not have go. "epochs" takes the place
    of "steps", and the other way. Raises `Error` for what is no change; `load` checks the result.
    """
    recipe = copy.deepcopy(recipe)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise Error(f"--set {change}: expected key=value, as optimizer.learning_rate=0.01")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        *outer, last = key.split(".")
        if len(outer) > 1 or (outer and not isinstance(recipe.setdefault(outer[0], {}), dict)):
            raise Error(f"--set {change}: a recipe has no such key")
        (recipe[outer[0]] if outer else recipe)[last] = value
        kinds = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}.get(outer[0] if outer else "", {})
        if last == "name" and isinstance(value, str) and value in kinds:
            known = ["name", *" ".join(kinds[value]).split()]
            recipe[outer[0]] = {k: v for k, v in recipe[outer[0]].items() if k in known}
        if key in ("epochs", "steps"):
            recipe.pop({"epochs": "steps", "steps": "epochs"}[key], None)
    return recipe


def _check(recipe):
    check_keys(recipe, REQUIRED, OPTIONAL, VALUES)
    if ("epochs" in recipe) == ("steps" in recipe):
        raise Error("expected either the key 'epochs' or the key 'steps'")
    for part, kinds in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        options = dict(recipe[part])
        if "name" not in options:
            raise Error(f"{part}: the key 'name' is missing; expected one of {', '.join(kinds)}")
        name = options.pop("name")
        if not isinstance(name, str) or name not in kinds:
            raise Error(f"{part}: 'name' is {json.dumps(name)}{nearest(name, kinds)}; expected {', '.join(kinds)}")
        _part(part, options, *kinds[name])
    if recipe["optimizer"].get("nesterov") and not recipe["optimizer"].get("momentum"):
        raise Error("optimizer: 'nesterov' is true, which needs a 'momentum' above 0")
    _part("augmentation", recipe["augmentation"], "", AUGMENTATIONS)
    warmup, units = recipe["schedule"].get("warmup", 0), recipe.get("epochs") or recipe["steps"]
    if warmup >= units and warmup:
        raise Error(f"schedule: 'warmup' is {warmup}, expected less than the run's length, {units}")


def _part(name, options, needed, optional):
    try:
        check_keys(options, needed, optional, VALUES)
    except Error as error:
        raise Error(f"{name}: {error}") from None


def network(recipe):
    """The spec of the network that the recipe trains: with its classes and its preprocessing. Raises `Error`."""
    spec = networks.load(recipe["network"])
    count = class_count(recipe)
    if count:
        spec = networks.with_classes(spec, count)
    if "preprocessing" in recipe:
        spec = networks.load(spec | {"preprocessing": recipe["preprocessing"]})
    rows = shapes.layers(spec)
    if len(rows[-1].shape) > 1:
        raise Error(f"{spec['name']} ends in a map, not in a vector of logits to train on")
    frozen(recipe, spec)
    return spec


def class_count(recipe):
    """How many classes the recipe has, or None where it leaves that to the network."""
    classes = recipe.get("classes")
    return len(classes) if isinstance(classes, list) else classes


def frozen(recipe, spec):
    """The names of the layers and blocks of the chain that the recipe keeps as they are; `Error` where there is no such."""
    chain = [layer["name"] for layer in spec["layers"]]
    if recipe["freeze"] == [BACKBONE]:
        last = classifier(spec)["name"]
        return [name for name in chain if name != last]
    known = {*chain, *(layer.name for layer in unroll(spec))}
    for name in recipe["freeze"]:
        if name not in known:
            near = nearest(name, known) or f"; there are {', '.join(chain)}, and {BACKBONE} for all but the last"
            raise Error(f"'freeze': {spec['name']} has no layer {name!r}{near}")
    if not trained(recipe["freeze"], spec):
        raise Error("'freeze' names every layer with weights, so nothing is left to train")
    return recipe["freeze"]


def trained(frozen, spec):
    """{name: shape} of the weights that a run moves: not the running statistics, nor those of frozen layers."""
    kept = tuple(f"{name}." for name in frozen)
    found = shapes.weights(shapes.layers(spec))
    return {name: shape for name, shape in found.items() if ".running_" not in name and not name.startswith(kept)}


def length(recipe, steps_per_epoch):
    """The steps of the whole run."""
    return recipe["steps"] if "steps" in recipe else recipe["epochs"] * steps_per_epoch


def learning_rate(recipe, step, steps_per_epoch):
    """The learning rate of a step, which count from 0.

    After t units, epochs or steps, of n, with a warm-up of w:

    - "constant": the optimiser's own rate;
    - "step": divided by d after every `every` units, as PyTorch's StepLR;
    - "multi_step": divided by d at each of the milestones, as MultiStepLR;
    - "cosine": rate (1 + cos(pi (t - w) / (n - w))) / 2, as CosineAnnealingLR behind the warm-up;
    - in a warm-up of any of them: rate (t + 1) / w, as LinearLR (Goyal et al. 2017, arXiv:1706.02677, section 2.2).
    """
    rate, schedule = recipe["optimizer"]["learning_rate"], recipe["schedule"]
    units, whole_run = (step, recipe["steps"]) if "steps" in recipe else (step // steps_per_epoch, recipe["epochs"])
    warmup = schedule.get("warmup", 0)
    if units < warmup:
        return rate * (units + 1) / warmup
    if schedule["name"] == "step":
        return rate * (1 / schedule["divide_by"]) ** (units // schedule["every"])
    if schedule["name"] == "multi_step":
        return rate * (1 / schedule["divide_by"]) ** sum(units >= milestone for milestone in schedule["milestones"])
    if schedule["name"] == "cosine":
        return rate * (1 + math.cos(math.pi * (units - warmup) / (whole_run - warmup))) / 2
    return rate

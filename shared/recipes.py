"""Recipes of training runs: finding, reading, checking and changing the JSON files, and the networks they train.

A recipe is a dictionary as in `recipes/*.json`. Its length is in "epochs" or in "steps", and its schedule counts in the same
unit, from 0. An epoch has whole batches only.
"""

import copy
import fnmatch
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import limits, networks, shapes
from .checks import BOOLEAN, FRACTION, NAME, POSITIVE, SHARE, Error, Value, check_keys, first_few, nearest, one_of, whole
from .files import read_json
from .spec import LISTS, Spec, classifier, unroll

RECIPES = Path(__file__).parent / "recipes"
SCALED = "mixed_float16"  # the precision whose loss is scaled
PRECISIONS = ("float32", "float64", "mixed_bfloat16", SCALED)
BACKBONE = "backbone"  # of "freeze": everything but the classifier

BALANCED = "balanced"  # of "class_weights": in inverse proportion to the images of a class
KINDS_WITHOUT_DECAY = ("bias", "batch_norm")  # of "no_decay"

# keys whose numbers become floats
_FLOATS = (
    "learning_rate momentum weight_decay betas eps clip_norm clip_value divide_by "
    "start_factor end_factor pct_start div_factor final_div_factor power"
).split()

Recipe = dict[str, Any]  # a checked recipe

# name: (required keys, optional keys)
_ANY = "weight_decay no_decay rates clip_norm clip_value"  # keys of any optimiser
OPTIMIZERS = {
    "sgd": ("learning_rate", f"momentum nesterov {_ANY}"),
    "adam": ("learning_rate", f"betas eps {_ANY}"),
    "adamw": ("learning_rate", f"betas eps {_ANY}"),
}
SCHEDULES = {
    "constant": ("", "warmup"),
    "step": ("every divide_by", "warmup"),
    "multi_step": ("milestones divide_by", "warmup"),
    "cosine": ("", "warmup"),
    "linear": ("", "start_factor end_factor warmup"),
    "poly": ("", "power warmup"),
    "one_cycle": ("", "pct_start div_factor final_div_factor"),
}
REQUIRED = "name network data batch optimizer"
OPTIONAL = (
    "title source holdout preprocessing augmentation epochs steps schedule seed precision "
    "classes channels init weights_key freeze thaw head ignore "
    "label_smoothing class_weights accumulate ema patience"
)
AUGMENTATIONS = "pad flip crop jitter mixup scale window"
OF_IMAGES, OF_PIXELS = "pad crop mixup", "scale window"  # those that only one kind of network has: a class an image, or a pixel
# What other software calls a key, which no likeness finds or finds wrongly: our key
_ELSEWHERE = {
    "lr": "optimizer.learning_rate",
    "rate": "optimizer.learning_rate",
    "batch_size": "batch",
    "smoothing": "label_smoothing",
    "ema_decay": "ema",
    "max_norm": "optimizer.clip_norm",
    "mixup_alpha": "augmentation.mixup",
    "accumulation_steps": "accumulate",
    "warmup_epochs": "schedule.warmup",
}
DEFAULTS = {"augmentation": {}, "schedule": {"name": "constant"}, "seed": 0, "precision": "float32", "freeze": []}


def _are_names(value: Any) -> bool:
    """Whether it is a list of class names."""
    return type(value) is list and len(value) > 1 and all(type(name) is str and name for name in value)


def _are_groups(value: Any) -> bool:
    """Whether it is a list of lists of labels, no label in two of them: [[3], [5]]."""
    if type(value) is not list or len(value) < 2 or not all(type(group) is list and group for group in value):
        return False
    labels = [label for group in value for label in group]
    return all(map(whole(0).accepts, labels)) and len({*labels}) == len(labels)


_TEXT = Value(lambda v: type(v) is str and v, "a string that is not empty", {"type": "string", "minLength": 1})
_LABELS = {"type": "array", "minItems": 1, "items": whole(0).schema}

_AT_MOST_ONE = Value(
    lambda v: POSITIVE.accepts(v) and v <= 1,
    "a number above 0, at most 1",
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
)

# key: what its value must be
VALUES = {
    "name": NAME,
    **dict.fromkeys(("title", "source", "data", "init", "weights_key"), _TEXT),
    **dict.fromkeys(("batch", "epochs", "steps", "every", "channels"), whole(1)),
    **dict.fromkeys(("seed", "warmup"), whole(0)),
    "pad": whole(0, limits.PAD),
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
    "head": one_of("segmentation"),
    "ignore": whole(0, 255),
    "power": POSITIVE,
    "scale": Value(
        lambda v: type(v) is list and len(v) == 2 and all(map(POSITIVE.accepts, v)) and v[0] <= v[1],
        "two numbers above 0, the smaller first",
        {"type": "array", "minItems": 2, "maxItems": 2, "items": POSITIVE.schema},
    ),
    "window": Value(
        lambda v: whole(1).accepts(v) or (type(v) is list and len(v) == 2 and all(map(whole(1).accepts, v))),
        "a number of pixels, or a height and a width",
        {"anyOf": [whole(1).schema, {"type": "array", "minItems": 2, "maxItems": 2, "items": whole(1).schema}]},
    ),
    "classes": Value(
        lambda v: whole(2).accepts(v) or _are_groups(v) or _are_names(v),
        "a number of at least 2, names as a list or in a text file, or a list of labels for each class",
        {
            "anyOf": [
                whole(2).schema,
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 2, "items": {"type": "string", "minLength": 1}},
                {"type": "array", "minItems": 2, "items": _LABELS},
            ]
        },
    ),
    "freeze": Value(
        lambda v: type(v) is list and all(type(word) is str and word for word in v),
        f'a list of layers, or ["{BACKBONE}"]',
        {"type": "array", "items": {"type": "string", "minLength": 1}},
    ),
    **dict.fromkeys(("crop", "jitter"), _AT_MOST_ONE),
    **dict.fromkeys(("momentum", "label_smoothing"), FRACTION),
    **dict.fromkeys(("mixup", "clip_norm", "clip_value"), POSITIVE),
    **dict.fromkeys(("accumulate", "patience", "thaw"), whole(1)),
    "class_weights": Value(
        lambda v: v == BALANCED or (type(v) is list and len(v) > 1 and all(map(POSITIVE.accepts, v))),
        f'"{BALANCED}", or a list of a number above 0 for each class',
        {"anyOf": [{"const": BALANCED}, {"type": "array", "minItems": 2, "items": POSITIVE.schema}]},
    ),
    **dict.fromkeys(("holdout", "ema", "pct_start"), SHARE),
    "no_decay": Value(
        lambda v: type(v) is list and v and all(kind in KINDS_WITHOUT_DECAY for kind in v),
        "a list of " + " or ".join(f'"{kind}"' for kind in KINDS_WITHOUT_DECAY),
        {"type": "array", "minItems": 1, "items": {"enum": [*KINDS_WITHOUT_DECAY]}},
    ),
    "rates": Value(
        lambda v: type(v) is dict and v and all(map(POSITIVE.accepts, v.values())),
        'an object of name patterns and factors above 0, as {"layer1.*": 0.1}',
        {"type": "object", "minProperties": 1, "additionalProperties": POSITIVE.schema},
    ),
    **dict.fromkeys(
        ("weight_decay", "start_factor", "end_factor"),
        Value(
            lambda v: POSITIVE.accepts(v) or (type(v) in (int, float) and v == 0),
            "a number of at least 0",
            {"type": "number", "minimum": 0, "maximum": POSITIVE.schema["maximum"]},
        ),
    ),
    "betas": Value(
        lambda v: type(v) is list and len(v) == 2 and all(map(FRACTION.accepts, v)),
        "two numbers of at least 0, below 1",
        {"type": "array", "minItems": 2, "maxItems": 2, "items": FRACTION.schema},
    ),
    **dict.fromkeys(
        ("divide_by", "div_factor", "final_div_factor"),
        Value(lambda v: POSITIVE.accepts(v) and v > 1, "a number above 1", POSITIVE.schema | {"exclusiveMinimum": 1}),
    ),
    "milestones": Value(
        lambda v: type(v) is list and v and all(map(whole(1).accepts, v)) and v == sorted({*v}),
        "whole numbers of at least 1, each larger than the one before",
        {"type": "array", "minItems": 1, "uniqueItems": True, "items": whole(1).schema},
    ),
}


def names() -> list[str]:
    """Names of all recipes that come with the project, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def load(recipe: str | Path | dict[str, Any]) -> Recipe:
    """The checked recipe of a name, of the path of a file ending in `.json`, or of a dictionary, with `DEFAULTS` filled in.

    Raises `Error`, with file and key, if it is none of these or does not describe a run.
    """
    content, origin = _read_recipe(recipe)
    try:
        if not isinstance(content, dict):
            raise Error('a recipe is a JSON object with "name", "network", "data", "batch", "optimizer" and "epochs"')
        checked: Recipe = copy.deepcopy(DEFAULTS) | content
        if isinstance(checked.get("classes"), str):  # the names themselves, so that they go with the run
            checked["classes"] = networks.class_names({"classes": networks.names_in(checked["classes"], Path())})
        _check_recipe(checked)
        network(checked)
    except Error as error:
        raise Error(f"{origin}: {error}") from None
    for part in ("optimizer", "schedule"):
        checked[part] = {key: _float(value) if key in _FLOATS else value for key, value in checked[part].items()}
    return checked


def _read_recipe(recipe: str | Path | dict[str, Any]) -> tuple[Any, str]:
    """The content of a recipe, and what error messages call it."""
    if isinstance(recipe, dict):
        return recipe, f"recipe {recipe.get('name', '')!r}"
    path, origin = Path(recipe), f"{recipe}"
    if path.suffix != ".json":
        path = RECIPES / f"{path.name}.json"
        if path.stem != origin or not path.is_file():
            near = nearest(origin, names()) or f"; there are {', '.join(names())}, and files ending in .json"
            raise Error(f"no recipe is called {origin!r}{near}")
        origin = f"recipe {origin!r}"
    return read_json(path, recipe, limits.SPEC), origin


def _float(value: Any) -> float | list[float]:
    """A number, or a list of them, as floats: the frameworks do not take whole numbers everywhere."""
    return [float(number) for number in value] if isinstance(value, list) else float(value)


def changed(recipe: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The recipe with changes such as "optimizer.learning_rate=0.01": a dotted key, and a value in JSON or a plain string.

    If the name of an optimiser or a schedule changes, the keys that the new one does not have are removed. "epochs" replaces
    "steps", and vice versa. Raises `Error` for what is not a change; `load` checks the result.
    """
    result = copy.deepcopy(dict(recipe))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise Error(f"--set {change}: expected key=value, for example optimizer.learning_rate=0.01")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        *outer, last = key.split(".")
        if len(outer) > 1 or (outer and not isinstance(result.setdefault(outer[0], {}), dict)):
            raise Error(f"--set {change}: recipes have no such key")
        (result[outer[0]] if outer else result)[last] = value
        kinds = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}.get(outer[0] if outer else "", {})
        if last == "name" and isinstance(value, str) and value in kinds:
            known = ["name", *" ".join(kinds[value]).split()]
            result[outer[0]] = {k: v for k, v in result[outer[0]].items() if k in known}
        if key in ("epochs", "steps"):
            result.pop({"epochs": "steps", "steps": "epochs"}[key], None)
    return result


def _check_recipe(recipe: dict[str, Any]) -> None:
    _check_places("", recipe, f"{REQUIRED} {OPTIONAL}")
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
        _check_part(part, options, *kinds[name])
    if recipe["optimizer"].get("nesterov") and not recipe["optimizer"].get("momentum"):
        raise Error("optimizer: 'nesterov' is true, which needs a 'momentum' above 0")
    if "clip_norm" in recipe["optimizer"] and "clip_value" in recipe["optimizer"]:
        raise Error("optimizer: expected either the key 'clip_norm' or the key 'clip_value'")
    _check_part("augmentation", recipe["augmentation"], "", AUGMENTATIONS)
    warmup, units = recipe["schedule"].get("warmup", 0), recipe.get("epochs") or recipe["steps"]
    if warmup >= units and warmup:
        raise Error(f"schedule: 'warmup' is {warmup}, expected less than the run's length, {units}")
    if "thaw" in recipe and not recipe["freeze"]:
        raise Error("'thaw' says when the layers in 'freeze' begin to train, but 'freeze' names none")
    if "thaw" in recipe and recipe["precision"] == SCALED and recipe["optimizer"]["name"] != "sgd":
        raise Error("'thaw' with mixed_float16 needs sgd: other optimisers would count steps that loss scaling skips")
    if recipe.get("thaw", 0) >= units:
        raise Error(f"'thaw' is {recipe['thaw']}, expected less than the run's length, {units}")


def _check_places(part: str, options: Iterable[str], known: str) -> None:
    """Raise `Error` for a key that belongs in another part of the recipe, or that we call by another name."""
    kinds = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    places = {"": f"{REQUIRED} {OPTIONAL}", "augmentation": AUGMENTATIONS}
    places |= {place: " ".join(f"{needed} {more}" for needed, more in kind.values()) for place, kind in kinds.items()}
    for key in options:
        if key in known.split():
            continue
        if key in places[part].split():
            owners = [name for name, (needed, more) in kinds[part].items() if key in f"{needed} {more}".split()]
            raise Error(f"unknown key {key!r}, which is for {', '.join(owners)}")
        ours = [f"{place}.{key}".lstrip(".") for place, keys in places.items() if key in keys.split()]
        if key in _ELSEWHERE or ours:
            raise Error(f"unknown key {key!r}; expected {_ELSEWHERE.get(key) or ' or '.join(ours)}")


def _check_part(name: str, options: dict[str, Any], needed: str, optional: str) -> None:
    try:
        _check_places(name, options, f"{needed} {optional}")
        check_keys(options, needed, optional, VALUES)
    except Error as error:
        raise Error(f"{name}: {error}") from None


def network(recipe: Recipe) -> Spec:
    """The spec of the network that the recipe trains, with the recipe's classes, their names, channels and preprocessing.

    With a "head", it classifies every pixel. Raises `Error` if there is no such network, or it does not end in logits.
    """
    spec = networks.load(recipe["network"])
    if "head" in recipe and not networks.is_dense(spec):
        spec = networks.segmentation(spec, class_count(recipe) or networks.outputs(spec) or 1)
    spec = networks.variant(spec, class_count(recipe), recipe.get("channels"))
    if "preprocessing" in recipe:
        spec = networks.load(spec | {"preprocessing": recipe["preprocessing"]})
    rows = shapes.layers(spec)
    if len(rows[-1].shape) > 1 and not networks.is_dense(spec):
        raise Error(f"{spec['name']} ends in a map, not in a vector of logits to train on")
    _check_kind(recipe, spec)
    frozen(recipe, spec)
    _check_rates(recipe, spec)
    class_weights, classes = recipe.get("class_weights"), rows[-1].shape[0]
    if isinstance(class_weights, list) and len(class_weights) != classes:
        raise Error(f"'class_weights' has {len(class_weights)} numbers, but {spec['name']} has {classes} classes")
    return _named(spec, recipe, rows[-1].shape[0])


def _check_kind(recipe: Recipe, spec: Spec) -> None:
    """Raise `Error` for keys that are not for networks of this kind: those that classify images, or every pixel."""
    dense = networks.is_dense(spec)
    does = f"{spec['name']} classifies {'every pixel' if dense else 'whole images'}"
    wrong, right = (OF_IMAGES, OF_PIXELS) if dense else (OF_PIXELS, OF_IMAGES)
    for key in wrong.split():
        if key in recipe["augmentation"]:
            raise Error(f"augmentation: unexpected {key!r}, as {does}; expected {', '.join(right.split())}")
    if "ignore" in recipe and not dense:
        raise Error(f"'ignore' is the mask value of pixels to leave out, but {does}; see the key 'head'")
    if dense and label_groups(recipe):
        raise Error(f"'classes' is a list of labels for each class, but {does}; expected a number of classes, or names")
    if dense and shapes.layers(spec)[-1].shape[0] > 255:
        raise Error(f"{spec['name']} has {shapes.layers(spec)[-1].shape[0]} classes, but masks of bytes at most 255")


def _named(spec: Spec, recipe: Recipe, outputs: int) -> Spec:
    """The spec with the names of the classes that it is trained on, or with none if they are not known.

    They are the recipe's, or the data set's, cifar10 or cifar10_5k.npz, or those that the spec lists itself. A list that comes
    with the project is of other classes than another data set's. A class of several labels is called by all of their names.
    """
    stem = Path(recipe["data"]).stem
    known = next((name for name in LISTS if f"{stem}_".startswith(f"{name}_")), None)
    names = networks.class_names({"classes": known}) if known else None
    chosen: str | list[str] | None = None
    groups = label_groups(recipe)
    if groups and names and max(map(max, groups)) < len(names):
        chosen = [", ".join(names[label] for label in group) for group in groups]
    elif not groups and _are_names(recipe.get("classes")):
        chosen = recipe["classes"]
    elif not groups and names and len(names) == outputs:
        chosen = known
    elif not groups and isinstance(spec.get("classes"), list):
        chosen = spec["classes"]
    rest = {key: value for key, value in spec.items() if key != "classes"}
    return spec if chosen == spec.get("classes") else rest | ({"classes": chosen} if chosen else {})


def following(spec: Spec, recipe: Recipe, start: Spec, labels: int, channels: int) -> Spec:
    """The network with the numbers of classes and channels of that which the run starts from, `start`.

    A number is taken over if the recipe does not give it and the data set has it: so many labels, such images.
    """
    given = {"classes": class_count(recipe), "channels": recipe.get("channels")}
    own, theirs = ({"classes": networks.outputs(each), "channels": each["input"][0]} for each in (spec, start))
    data = {"classes": labels, "channels": channels}
    taken = {key: count for key, count in theirs.items() if given[key] is None and own[key] != count == data[key]}
    return network(recipe | {"network": networks.variant(spec, **taken)}) if taken else spec


def label_groups(recipe: Recipe) -> list[list[int]] | None:
    """The labels of each class, if the recipe makes its classes of labels of the data set."""
    classes = recipe.get("classes")
    return classes if _are_groups(classes) else None


def _check_rates(recipe: Recipe, spec: Spec) -> None:
    """Raise `Error` for a pattern of "rates" that is no weight's."""
    names = trained((), spec)
    for pattern in recipe["optimizer"].get("rates", {}):
        if not any(_is_like(name, pattern, spec) for name in names):
            expected = f"there are {first_few([*names])}, and {BACKBONE} for all but the classifier's"
            raise Error(f"optimizer: 'rates': no weight matches {pattern!r}; {expected}")


def _is_like(name: str, pattern: str, spec: Spec) -> bool:
    """Whether a pattern of "rates" fits the name of a weight."""
    if pattern == BACKBONE:
        return not name.startswith(f"{classifier(spec)['name']}.")
    return fnmatch.fnmatchcase(name, pattern)


def groups(optimizer: Mapping[str, Any], spec: Spec, names: Iterable[str]) -> list[tuple[float, bool, list[str]]]:
    """[(factor of the learning rate, whether weight decay applies, names)]: weights that an optimiser treats alike.

    "rates" has patterns, as those of file names, or "backbone", and factors; the first pattern that fits a name counts. Of the
    kinds of "no_decay", "bias" is every bias, also those of batch norms, and "batch_norm" all weights of batch norms.
    """
    rates, kinds = optimizer.get("rates", {}), optimizer.get("no_decay", ())
    leaves = shapes.leaves(shapes.layers(spec)) if "batch_norm" in kinds else []
    exempt = {name for leaf in leaves if leaf.type == "batch_norm" for name in leaf.weights}
    members: dict[tuple[float, bool], list[str]] = {}
    for name in names:
        factor = next((float(rates[pattern]) for pattern in rates if _is_like(name, pattern, spec)), 1.0)
        decays = name not in exempt and not ("bias" in kinds and name.endswith(".bias"))
        members.setdefault((factor, decays), []).append(name)
    return [(*group, names) for group, names in members.items()]


def class_count(recipe: Recipe) -> int | None:
    """How many classes the recipe has, or None if it leaves that to the network."""
    classes = recipe.get("classes")
    return len(classes) if isinstance(classes, list) else classes


def frozen(recipe: Recipe, spec: Spec) -> list[str]:
    """The names of the layers and blocks of the chain that the recipe freezes.

    Raises `Error` if the network has no such layer, or none is left to train.
    """
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


def kept(recipe: Recipe, spec: Spec) -> list[str]:
    """The layers and blocks that the recipe freezes for the whole run: those of `frozen`, unless they thaw."""
    return [] if "thaw" in recipe else frozen(recipe, spec)


def thaw_step(recipe: Recipe, steps_per_epoch: int) -> int | None:
    """The first step, from 0, at which all weights train, or None if nothing thaws."""
    return recipe["thaw"] * (1 if "steps" in recipe else steps_per_epoch) if "thaw" in recipe else None


def trained(frozen: Iterable[str], spec: Spec) -> dict[str, shapes.Shape]:
    """{name: shape} of the weights that a run trains: neither running statistics nor the weights of frozen layers."""
    prefixes = tuple(f"{name}." for name in frozen)
    rows = shapes.layers(spec)
    return {name: shape for row in rows for name, shape in row.trainable.items() if not name.startswith(prefixes)}


def engine_options(recipe: Recipe) -> dict[str, Any]:
    """The arguments that engines take from a recipe, besides the optimiser.

    Raises `Error` for class weights that are yet to be balanced, by `twins.batches.balanced`.
    """
    if recipe.get("class_weights") == BALANCED:
        raise Error(
            f"'class_weights' is \"{BALANCED}\", which needs the data: pass the recipe through twins.batches.balanced first"
        )
    return {key: recipe[key] for key in ("label_smoothing", "class_weights", "accumulate", "ema") if key in recipe}


def images_per_step(recipe: Recipe) -> int:
    """The images that a step takes: as many batches as it accumulates the gradients of."""
    return recipe["batch"] * recipe.get("accumulate", 1)


def length(recipe: Recipe, steps_per_epoch: int) -> int:
    """The number of steps of the whole run."""
    return recipe["steps"] if "steps" in recipe else recipe["epochs"] * steps_per_epoch


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step; steps count from 0.

    After t units, epochs or steps, of n, with a warm-up of w:

    - "constant": the optimiser's own rate;
    - "step": divided by d after every `every` units, as PyTorch's StepLR;
    - "multi_step": divided by d at each of the milestones, as MultiStepLR;
    - "cosine": rate (1 + cos(pi (t - w) / (n - w))) / 2, as CosineAnnealingLR after the warm-up;
    - "linear": from `start_factor` times the rate, by default 1, to `end_factor` times, by default 0, as LinearLR over n - w;
    - "poly": rate (1 - (t - w) / (n - w)) ** power, by default 0.9, as the DRN authors';
    - "one_cycle": OneCycleLR's cosines, up to the rate and down, always by steps; momentum stays;
    - in a warm-up of any of them: rate (s + 1) / m at step s of its m steps, as LinearLR (Goyal et al. 2017,
      arXiv:1706.02677, section 2.2), so that it rises from step to step also if it counts in epochs.
    """
    rate, schedule = recipe["optimizer"]["learning_rate"], recipe["schedule"]
    units, all_units = (step, recipe["steps"]) if "steps" in recipe else (step // steps_per_epoch, recipe["epochs"])
    warmup = schedule.get("warmup", 0)
    if units < warmup:
        return rate * (step + 1) / (warmup * (1 if "steps" in recipe else steps_per_epoch))
    if schedule["name"] == "step":
        return rate * (1 / schedule["divide_by"]) ** (units // schedule["every"])
    if schedule["name"] == "multi_step":
        return rate * (1 / schedule["divide_by"]) ** sum(units >= milestone for milestone in schedule["milestones"])
    if schedule["name"] == "cosine":
        return rate * (1 + math.cos(math.pi * (units - warmup) / (all_units - warmup))) / 2
    if schedule["name"] == "linear":
        first, last = schedule.get("start_factor", 1.0), schedule.get("end_factor", 0.0)
        return rate * (first + (last - first) * (units - warmup) / (all_units - warmup))
    if schedule["name"] == "poly":
        return rate * (1 - (units - warmup) / (all_units - warmup)) ** schedule.get("power", 0.9)
    if schedule["name"] == "one_cycle":
        return rate * _one_cycle(step, length(recipe, steps_per_epoch), **{k: v for k, v in schedule.items() if k != "name"})
    return rate


def _one_cycle(step: int, steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4) -> float:
    """The factor of the learning rate in `torch.optim.lr_scheduler.OneCycleLR`, with its defaults.

    It rises from 1 / div_factor to 1 in the fraction `pct_start` of the steps, and falls to 1 / (div_factor final_div_factor).
    """
    top, end = pct_start * steps - 1, steps - 1
    if step <= top:
        first, last, share = 1 / div_factor, 1.0, step / top if top else 1.0
    else:
        first, last, share = 1.0, 1 / (div_factor * final_div_factor), (step - top) / (end - top)
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))

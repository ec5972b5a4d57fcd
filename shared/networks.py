"""The networks that come with the project: finding, reading and checking their specs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import shapes
from .checks import POSITIVE, Error, Value, are_numbers, check_keys, nearest, one_of, whole
from .files import read_json
from .spec import CLASSES, SPECS, Layer, Spec, check_layers, classifier, unroll

TOPS = ("global_avg_pool", "adaptive_avg_pool", "flatten")  # the first of these begins the classifier

PREPROCESSING = {
    "resize": whole(1),  # the shorter side, in pixels
    "crop": whole(1),  # the side of the square in the centre, in pixels
    "channels": one_of("RGB", "BGR", "L"),
    "scale": POSITIVE,
    "mean": Value(are_numbers, "a list of numbers, one per channel", {"type": "array", "items": {"type": "number"}}),
    "std": Value(
        lambda v: are_numbers(v) and all(n > 0 for n in v),
        "a list of numbers above 0, one per channel",
        {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}},
    ),
}


def names() -> list[str]:
    """Names of all networks that come with the project, sorted: resnet18 before resnet101."""
    return sorted((path.stem for path in SPECS.glob("*.json")), key=_sort_key)


def _sort_key(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load(network: str | Path | Spec) -> Spec:
    """The checked spec of a network.

    `network` is one of `names()`, the path of a file ending in `.json`, or a spec itself.
    Raises `Error`, with file, layer and key, if it is none of these or does not describe a network.
    """
    if isinstance(network, dict):
        spec, origin = network, f"spec {network.get('name', '')!r}"
    elif isinstance(network, (str, Path)):
        spec, origin = _read_spec(network)
    else:
        raise Error(f"a network is a name, the path of a JSON file or a spec, not {network!r}")
    try:
        _check_spec(spec)
    except Error as error:
        raise Error(f"{origin}: {error}") from None
    return spec


def _read_spec(network: str | Path) -> tuple[Any, str]:
    """The content of a spec, and what error messages call it."""
    path = Path(network)
    if path.suffix != ".json":
        path = SPECS / f"{path.name}.json"
        if path.stem != str(network) or not path.is_file():
            if Path(network).exists() or path.stem != str(network):
                raise Error(f"{network}: the path of a spec ends in .json, and `twins list` lists the names of networks")
            near = nearest(network, names())
            raise Error(f"no network is called {str(network)!r}{f'{near} `twins' if near else '; `twins'} list` lists them all")
    return read_json(path, network), str(network)


def _check_spec(spec: Any) -> None:
    check_layers(spec)
    rows = shapes.layers(spec)
    count = shapes.parameters(rows)
    if spec.get("parameters", count) != count:
        raise Error(f'"parameters" is {spec["parameters"]:,}, but the layers have {count:,}')
    if "preprocessing" in spec:
        try:
            _check_preprocessing(spec)
        except Error as error:
            raise Error(f"preprocessing: {error}") from None
    if "classes" in spec:
        classes, outputs = len(_class_lines(spec)), rows[-1].shape[0]
        if classes != outputs:
            raise Error(
                f"'classes' is {json.dumps(spec['classes'])}, which has {classes} names, but the network has {outputs} outputs"
            )


def _check_preprocessing(spec: Spec) -> None:
    given, channels = spec["preprocessing"], spec["input"][0]
    check_keys(given, "channels scale mean std", "resize crop", PREPROCESSING)
    for key in ("channels", "mean", "std"):
        if len(given[key]) != channels:
            raise Error(f"{key!r} is {json.dumps(given[key])}, but the input has {channels} channels")
    if "crop" in given:
        crop, resize = given["crop"], given.get("resize", 0)
        if crop > resize:
            limit = f"must not exceed 'resize', {resize}" if resize else "needs a 'resize'"
            raise Error(f"'crop' is {crop}, which {limit}")
        try:
            shapes.layers(spec, (crop, crop))
        except Error as error:
            raise Error(f"'crop' is {crop}, which the network does not take: {error}") from None


def with_classes(spec: Spec, count: int) -> Spec:
    """The spec of the network with `count` classes, the outputs of its classifier.

    Called NAME_COUNT_classes, or the spec itself if it has that many. Raises `Error` if the network has no classifier.
    """
    last = classifier(spec)
    if last["out"] == count:
        return spec
    rest = {key: value for key, value in spec.items() if key not in ("parameters", "classes")}
    layers = [layer | {"out": count} if layer is last else layer for layer in spec["layers"]]
    title = {"title": f"{spec['title']}, {count} classes"} if "title" in spec else {}
    return load(rest | title | {"name": f"{spec['name']}_{count}_classes", "layers": layers})


def with_size(spec: Spec, size: Sequence[int]) -> Spec:
    """The spec of the network for images of another size, (height, width), whose preprocessing gives pictures of that size.

    "crop" becomes that size and "resize" keeps its ratio to it. For images that are not square both are left out: pictures are
    then resized to them.
    """
    channels, *own_size = spec["input"]
    if [*size] == own_size:
        return spec
    spec = spec | {"input": [channels, *size]}
    options = spec.get("preprocessing", {})
    if "resize" in options:
        rest = {key: value for key, value in options.items() if key not in ("resize", "crop")}
        scale = size[0] / options.get("crop", options["resize"])
        square = {"resize": round(options["resize"] * scale), "crop": size[0]} if size[0] == size[1] else {}
        spec["preprocessing"] = square | rest
    return spec


def headless(spec: Spec) -> Spec:
    """The spec of a network without its classifier: the chain up to the last map, called NAME_notop.

    `keras.applications` builds it with `include_top=False`. A spec without a classifier is returned as it is.
    """
    end = next((i for i, layer in enumerate(spec["layers"]) if layer["type"] in TOPS), None)
    if not end:
        return spec
    rest = {key: value for key, value in spec.items() if key not in ("parameters", "classes")}
    return rest | {"name": f"{spec['name']}_notop", "layers": spec["layers"][:end]}


def head(spec: Spec) -> tuple[list[str], str]:
    """(names of the layers before the global pooling, name of the classifier after it).

    Raises `Error` unless one linear layer or 1x1 convolution follows the pooling, with nothing else there but flatten and
    dropout: only then can the classifier be applied at every position.
    """
    chain = unroll(spec)
    pool = max((number for number, layer in enumerate(chain) if layer.type == "global_avg_pool"), default=len(chain))
    after = [layer for layer in chain[pool + 1 :] if layer.type not in ("flatten", "dropout")]
    if [layer.type == "linear" or _one_by_one(layer) for layer in after] != [True]:
        expected = "a global_avg_pool followed by one linear layer or 1x1 convolution"
        raise Error(f"{spec['name']} has no class maps: it does not end in {expected}")
    return [layer.name for layer in chain[:pool]], after[0].name


def _one_by_one(layer: Layer) -> bool:
    options = {"stride": 1, "padding": 0} | layer.options
    return layer.type == "conv" and options["kernel"] == options["stride"] == 1 and options["padding"] in (0, "same")


def layer_name(spec: Spec, name: str) -> str:
    """The name of a layer of the chain in full; that of a group, as "layer1", is its last member's.

    Raises `Error`, with the nearest name, where the network has no such layer.
    """
    names = [layer.name for layer in unroll(spec)]
    known = {full.partition(".")[0]: full for full in names} | {full: full for full in names}
    if name not in known:
        near = nearest(name, known) or f"; `twins show {spec['name']}` lists them"
        raise Error(f"{spec['name']} has no layer {name!r}{near}")
    return known[name]


def class_names(spec: Spec) -> list[str] | None:
    """The names of the network's classes, or None if the spec has no list; ImageNet's without their WordNet numbers."""
    return [re.sub(r"^n\d{8} ", "", line) for line in _class_lines(spec)] if "classes" in spec else None


def _class_lines(spec: Spec) -> list[str]:
    return (CLASSES / f"{spec['classes']}.txt").read_text(encoding="utf-8").splitlines()

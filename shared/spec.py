"""The form of a network spec: the types of layers, and the keys that each takes.

A spec is a dictionary as in `specs/*.json`: a chain of layers and blocks, one per line. Shapes are (channels, height, width).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from . import limits
from .checks import (
    BOOLEAN,
    FRACTION,
    NAME,
    POSITIVE,
    TEXT,
    Error,
    Value,
    are_counts,
    check_keys,
    is_positive,
    nearest,
    one_of,
    shown,
    whole,
)

SPECS, CLASSES = (Path(__file__).parent / name for name in ("specs", "classes"))
LISTS = sorted(path.stem for path in CLASSES.glob("*.txt"))  # of class names, that come with the project

LAYER_NAME = r"([A-Za-z]\w*)(?:\.(0|[1-9][0-9]*))?"

Spec = dict[str, Any]  # a checked spec


class Layer(NamedTuple):
    """One layer or block of the chain, `repeat` unrolled."""

    name: str  # "conv1"; "layer1.0" in a group
    type: str
    sizes: list[int]  # [in, out], [in] or []
    options: dict[str, Any]  # by the names of the constructors' arguments


_CONVOLUTIONS = "stride padding dilation first_dilation bias norm eps momentum shortcut repeat"
_FIRST_ONLY = ("stride", "first_dilation", "first_activation")  # only the first block of a `repeat` has these

# type: (required keys, optional keys)
BLOCKS = {
    "basic": ("in out", _CONVOLUTIONS),
    "bottleneck": ("in out", _CONVOLUTIONS + " stride_at width groups"),
    "preact_basic": ("in out", "stride norm shortcut first_activation repeat"),
    "preact_bottleneck": ("in out", "stride norm shortcut first_activation repeat"),
    "residual_unit": ("in out", "stride norm activation shortcut shortcut_scale residual_scale repeat"),
    "conv_norm_relu": ("in out kernel", "stride bias norm eps"),
    "inception": ("in out branches", "kernel bias norm eps"),
    "inception_a": ("in out", "bias norm"),
}
TYPES = {
    "conv": ("in out kernel", "stride padding dilation bias"),
    "batch_norm": ("in", "eps momentum"),
    "local_response_norm": ("size", "alpha beta k"),
    "relu": ("", ""),
    "scaled_tanh": ("", ""),
    "dropout": ("rate", ""),
    "max_pool": ("kernel", "stride padding ceil"),
    "avg_pool": ("kernel", "stride padding"),
    "adaptive_avg_pool": ("size", ""),
    "global_avg_pool": ("", ""),
    "flatten": ("", ""),
    "linear": ("in out", "bias"),
    "upsample": ("scale", ""),
    "upsample_transposed": ("in scale", ""),
    **BLOCKS,
}
SHORTCUTS = {
    **dict.fromkeys(("basic", "bottleneck"), ("projection", "projection3x3", "conv", "pad", "none", "unused")),
    **dict.fromkeys(("preact_basic", "preact_bottleneck"), ("projection", "pad")),
    "residual_unit": ("pad", "conv", "exclusive_gate", "shortcut_gate", "dropout"),
}
VALUES = {
    **dict.fromkeys("in out kernel stride dilation first_dilation size width groups scale".split(), whole(1)),
    "repeat": whole(1, limits.LAYERS),
    "padding": Value(
        lambda v: v == "same" or whole(0).accepts(v),
        'a number of pixels, 0 or more, or "same"',
        {"anyOf": [whole(0).schema, {"const": "same"}]},
    ),
    **dict.fromkeys(("bias", "norm", "ceil", "first_activation"), BOOLEAN),
    **dict.fromkeys(("alpha", "beta", "k", "shortcut_scale", "residual_scale"), POSITIVE),
    "eps": Value(
        lambda v: is_positive(v) and v < 1,
        "a number above 0, below 1",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    ),
    "rate": FRACTION,
    "momentum": Value(
        lambda v: is_positive(v) and v <= 1,
        "a number above 0, at most 1",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ),
    "stride_at": one_of("conv1", "conv2"),
    "activation": one_of("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation"),
    "branches": Value(
        lambda v: type(v) is list and [type(b) is list and len(b) for b in v] == [1, 2, 2, 1] and all(map(are_counts, v)),
        "four branches and the channels in them, [[1x1], [reduce, 3x3], [reduce, 5x5], [projection]]",
        {"type": "array", "minItems": 4, "maxItems": 4, "items": {"type": "array", "items": whole(1).schema}},
    ),
}
# The keys of a spec itself
REQUIRED, OPTIONAL = "name input layers", "title source parameters preprocessing classes weights"
SPEC_VALUES = {
    "name": NAME,
    "title": TEXT,
    "source": TEXT,
    "input": Value(
        lambda v: type(v) is list and len(v) == 3 and are_counts(v),
        "[channels, height, width], each a whole number of at least 1",
        {"type": "array", "minItems": 3, "maxItems": 3, "items": whole(1).schema},
    ),
    "parameters": whole(0, limits.NUMBERS),
    "preprocessing": Value(
        lambda v: type(v) is dict, "an object with channels, scale, mean and std", {"$ref": "#/$defs/preprocessing"}
    ),
    "classes": Value(
        lambda v: v and (type(v) is str or (type(v) is list and all(type(name) is str and name for name in v))),
        f"{' or '.join(LISTS)}, the path of a text file with a name a line, or a list of names",
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "examples": LISTS},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            ]
        },
    ),
    "weights": TEXT._replace(words="a string: who publishes the weights, and their name for the network"),
    "layers": Value(
        lambda v: type(v) is list and 0 < len(v) <= limits.LAYERS,
        f"a list of layers, at least one, at most {limits.LAYERS:,}",
        {"$ref": "#/$defs/layers"},
    ),
}


def values_of(kind: str) -> dict[str, Value]:
    """What the values of the keys of a type of layer must be: `VALUES` with the type's own shortcuts."""
    return VALUES | {"shortcut": one_of(*SHORTCUTS[kind])} if kind in SHORTCUTS else VALUES


def check_layers(spec: Any) -> None:
    """Raise `Error` unless a spec and its layers have the keys that they must; `shapes.layers` checks that layers fit."""
    if not isinstance(spec, dict):
        raise Error('a spec is a JSON object with "name", "input" and "layers"')
    check_keys(spec, REQUIRED, OPTIONAL, SPEC_VALUES)
    names: dict[str, int] = {}
    for number, layer in enumerate(spec["layers"], start=1):
        if not isinstance(layer, dict):
            raise Error(f"layer {number}: expected an object with a name and a type, found {shown(layer)}")
        where = f"layer {layer['name']!r}" if isinstance(layer.get("name"), str) else f"layer {number}"
        try:
            _check_layer(layer)
            _check_name(layer, names)
        except Error as error:
            raise Error(f"{where}: {error}") from None
    count = sum(layer.get("repeat", 1) for layer in spec["layers"])
    if count > limits.LAYERS:
        raise Error(f"it has {count:,} layers and blocks, expected at most {limits.LAYERS:,}, 'repeat' counted")


def _check_layer(layer: dict[str, Any]) -> None:
    if not isinstance(layer.get("type"), str) or layer["type"] not in TYPES:
        if "type" not in layer:
            raise Error("the key 'type' is missing")
        raise Error(f"unknown type {layer['type']!r}{nearest(layer['type'], TYPES) or '; expected ' + ', '.join(TYPES)}")
    needed, optional = TYPES[layer["type"]]
    options = {key: value for key, value in layer.items() if key not in ("name", "type")}
    if "name" not in layer:
        raise Error("the key 'name' is missing")
    check_keys(options, needed, optional, values_of(layer["type"]))
    if layer["type"] in BLOCKS and layer.get("padding", "same") != "same":
        raise Error(f"'padding' is {layer['padding']}, expected \"same\", or no such key for symmetric padding")


def _check_name(layer: dict[str, Any], earlier: dict[str, int]) -> None:
    """Check a name and add it to the `earlier` ones: {the word of a layer or a group: how many members, or 0 for a layer}."""
    # A name becomes an attribute, so it must be a word; `features.0` is a member of a group, and groups count up from 0.
    name = layer["name"]
    match = re.fullmatch(LAYER_NAME, name) if isinstance(name, str) and len(name) <= limits.WORD else None
    if not match:
        raise Error(
            f"a name is a word of at most {limits.WORD} letters, digits and underscores, "
            "or in a group a word, a dot and a number: features.0, features.1"
        )
    group, number = match.groups()
    members = earlier.get(group)
    if number is None:
        if members is not None:
            taken = f"the name is taken by the group that begins with '{name}.0'"
            raise Error(taken if members else "an earlier layer has the same name")
        earlier[group] = 0
        return
    if members and int(number) < members:
        raise Error("an earlier layer has the same name")
    if members == 0 or int(number) != (members or 0) or (members and next(reversed(earlier)) != group):
        raise Error("the layers of a group follow one another and count up from 0")
    if "repeat" in layer:
        raise Error("a layer of a group cannot repeat")
    earlier[group] = int(number) + 1


def unroll(spec: Spec) -> list[Layer]:
    """The chain as a list of `Layer`: a block with `repeat` becomes that many, of which the first has the stride."""
    chain = []
    for entry in spec["layers"]:
        options = dict(entry)
        name, kind, repeat = options.pop("name"), options.pop("type"), options.pop("repeat", None)
        sizes = [options.pop(key) for key in ("in", "out") if key in options]
        if repeat is None:
            chain.append(Layer(name, kind, sizes, options))
            continue
        others = {key: value for key, value in options.items() if key not in _FIRST_ONLY}
        chain.append(Layer(f"{name}.0", kind, sizes, options))
        chain += [Layer(f"{name}.{i}", kind, [sizes[1], sizes[1]], others) for i in range(1, repeat)]
    return chain


def classifier(spec: Spec) -> dict[str, Any]:
    """The last layer with an "out" in the spec. Raises `Error` unless it is a linear layer or a convolution."""
    last = next((layer for layer in reversed(spec["layers"]) if "out" in layer), None)
    if not last or last["type"] not in ("linear", "conv"):
        raise Error(f"{spec['name']} does not end in a linear layer or a convolution, so it has no classifier")
    return last

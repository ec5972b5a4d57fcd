"""Network specs: finding, reading and checking the JSON files.

A spec is a dictionary as in `specs/*.json`: a chain of layers and blocks, one a line. Shapes are (channels, height, width).
"""

import difflib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

SPECS = Path(__file__).parent / "specs"
CLASSES = Path(__file__).parent / "classes"


class Error(ValueError):
    """A user's mistake: the message says where it is and what would be right."""


class Layer(NamedTuple):
    """One layer or block of the chain, `repeat` unrolled."""

    name: str  # "conv1"; "layer1.0" in a group
    type: str
    sizes: list[int]  # [in, out], [in] or []
    options: dict[str, Any]  # by the names of the constructors' arguments


_CONVOLUTIONS = "stride padding dilation first_dilation bias norm eps momentum shortcut repeat"

_OF_THE_FIRST = ("stride", "first_dilation", "first_activation")  # of a `repeat`, the first block alone has these

# type: keys that it needs, keys that it may have
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
    **BLOCKS,
}
SHORTCUTS = {
    **dict.fromkeys(("basic", "bottleneck"), ("projection", "projection3x3", "conv", "pad", "none", "unused")),
    **dict.fromkeys(("preact_basic", "preact_bottleneck"), ("projection", "pad")),
    "residual_unit": ("pad", "conv", "exclusive_gate", "shortcut_gate", "dropout"),
}


def number(value):
    return type(value) in (int, float) and 0 < value < math.inf


def _counts(values):
    return all(type(v) is int and v > 0 for v in values)


def whole(least):
    return lambda v: type(v) is int and v >= least, f"a whole number of at least {least}"


def one_of(*values):
    return lambda v: v in values and type(v) is type(values[0]), "one of " + ", ".join(json.dumps(v) for v in values)


# key: what its value must be, as a test and in words
VALUES = {
    **dict.fromkeys("in out kernel stride dilation first_dilation repeat size width groups".split(), whole(1)),
    "padding": (lambda v: v == "same" or whole(0)[0](v), 'a number of pixels, 0 or more, or "same"'),
    **dict.fromkeys(("bias", "norm", "ceil", "first_activation"), one_of(True, False)),
    **dict.fromkeys(("alpha", "beta", "k", "shortcut_scale", "residual_scale"), (number, "a number above 0")),
    "eps": (lambda v: number(v) and v < 1, "a number above 0, below 1"),
    "rate": (lambda v: type(v) in (int, float) and 0 <= v < 1, "a number of at least 0, below 1"),
    "momentum": (lambda v: number(v) and v <= 1, "a number above 0, at most 1"),
    "stride_at": one_of("conv1", "conv2"),
    "activation": one_of("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation"),
    "branches": (
        lambda v: type(v) is list and [type(b) is list and len(b) for b in v] == [1, 2, 2, 1] and all(map(_counts, v)),
        "four branches and the channels in them, [[1x1], [reduce, 3x3], [reduce, 5x5], [projection]]",
    ),
}
NAME = (lambda v: type(v) is str and re.fullmatch(r"[A-Za-z0-9_.-]+", v), "a word of letters, digits, dots, - and _")
_SPEC_KEYS = {
    "name": NAME,
    "title": (lambda v: type(v) is str, "a text"),
    "source": (lambda v: type(v) is str, "a text"),
    "input": (
        lambda v: type(v) is list and len(v) == 3 and _counts(v),
        "[channels, height, width], each a whole number of at least 1",
    ),
    "parameters": whole(0),
    "preprocessing": (lambda v: type(v) is dict, "an object with channels, scale, mean and std"),
    "classes": one_of(*sorted(path.stem for path in CLASSES.glob("*.txt"))),
    "weights": (lambda v: type(v) is str, "a text: who publishes weights, and what they call the network"),
    "layers": (lambda v: type(v) is list and v, "a list of layers, at least one"),
}

_PREPROCESSING_KEYS = {
    "resize": whole(1),  # the shorter side, in pixels
    "crop": whole(1),  # the side of the square in the centre, in pixels
    "channels": one_of("RGB", "BGR", "L"),
    "scale": (lambda v: _numbers([v]) and v > 0, "a number above 0"),
    "mean": (lambda v: _numbers(v), "a list of numbers, one a channel"),
    "std": (lambda v: _numbers(v) and all(n > 0 for n in v), "a list of numbers above 0, one a channel"),
}


def _numbers(value):
    return type(value) is list and all(type(n) in (int, float) and math.isfinite(n) for n in value)


def names():
    """Names of all networks that come with the project, sorted."""
    return sorted((path.stem for path in SPECS.glob("*.json")), key=_natural)


def _natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load(network):
    """The checked spec of a network.

    `network` is one of `names()`, the path of a JSON file (ending in `.json`), or a spec itself.
    Raises `Error`, with file, layer and key, when it is none of these or does not describe a network.
    """
    if isinstance(network, dict):
        spec, origin = network, f"spec {network.get('name', '')!r}"
    elif isinstance(network, (str, Path)):
        spec, origin = _read(network)
    else:
        raise Error(f"a network is a name, the path of a JSON file or a spec, not {network!r}")
    try:
        _check(spec)
    except Error as error:
        raise Error(f"{origin}: {error}") from None
    return spec


def _read(network):
    path = Path(network)
    if path.suffix != ".json":
        path = SPECS / f"{path.name}.json"
        if path.stem != str(network) or not path.is_file():
            raise Error(f"no network is called {str(network)!r}{nearest(network, names())}; `twins list` shows them all")
    return read_json(path, network), str(network)


def read_json(path, called=None):
    """What a JSON file holds. Raises `Error`, in which it is `called` so, where it cannot be read or has a key twice."""
    called = called or path
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise Error(f"{called}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{called}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise Error(f"{called}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, a number too long, or a key that is there twice
        raise Error(f"{called}: {error}") from None


def _no_duplicates(pairs):
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            where = dict(pairs).get("name")
            raise Error(f"{f'layer {where!r}: ' if where else ''}the key {key!r} is there twice")
    return dict(pairs)


def nearest(word, words):
    """`, did you mean 'x'?` for the nearest of the words, or nothing when none is near."""
    near = difflib.get_close_matches(str(word), words, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _check(spec):
    if not isinstance(spec, dict):
        raise Error('a spec is a JSON object with "name", "input" and "layers"')
    check_keys(spec, "name input layers", "title source parameters preprocessing classes weights", _SPEC_KEYS)
    seen = []
    for number, layer in enumerate(spec["layers"], start=1):
        if not isinstance(layer, dict):
            raise Error(f"layer {number}: expected an object with a name and a type, found {json.dumps(layer)}")
        where = f"layer {layer['name']!r}" if "name" in layer else f"layer {number}"
        try:
            _check_layer(layer)
            _check_name(layer, seen)
        except Error as error:
            raise Error(f"{where}: {error}") from None
        seen.append(layer["name"])
    from . import shapes  # which reads this module

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
        classes, outputs = len((CLASSES / f"{spec['classes']}.txt").read_text("utf-8").splitlines()), rows[-1].shape[0]
        if classes != outputs:
            raise Error(f"'classes' is {json.dumps(spec['classes'])}, which has {classes}, but the network gives {outputs}")


def _check_preprocessing(spec):
    from . import shapes

    given, channels = spec["preprocessing"], spec["input"][0]
    check_keys(given, "channels scale mean std", "resize crop", _PREPROCESSING_KEYS)
    for key in ("channels", "mean", "std"):
        if len(given[key]) != channels:
            raise Error(f"{key!r} is {json.dumps(given[key])}, but the input has {channels} channels")
    if "crop" in given:
        crop, resize = given["crop"], given.get("resize", 0)
        if crop > resize:
            raise Error(f"'crop' is {crop}, expected a 'resize' of at least as much")
        try:
            shapes.layers(spec, (crop, crop))
        except Error as error:
            raise Error(f"'crop' is {crop}, which the network does not take: {error}") from None


def check_keys(given, needed, optional, values):
    """Raise `Error` for a key that is unknown or missing, or whose value fails its test; `values` is {key: (test, words)}."""
    needed, optional = needed.split(), optional.split()
    for key in given:
        if key not in needed + optional:
            known = needed + optional
            raise Error(
                f"unknown key {key!r}{nearest(key, known) or '; expected ' + (', '.join(known) or 'none but name and type')}"
            )
    missing = [repr(key) for key in needed if key not in given]
    if missing:
        raise Error(f"the keys {', '.join(missing)} are missing" if missing[1:] else f"the key {missing[0]} is missing")
    for key, value in given.items():
        test, words = values[key]
        if not test(value):
            raise Error(f"{key!r} is {json.dumps(value)[:60]}, expected {words}")


def _check_layer(layer):
    if not isinstance(layer.get("type"), str) or layer["type"] not in TYPES:
        if "type" not in layer:
            raise Error("the key 'type' is missing")
        raise Error(f"unknown type {layer['type']!r}{nearest(layer['type'], TYPES) or '; expected ' + ', '.join(TYPES)}")
    needed, optional = TYPES[layer["type"]]
    options = {key: value for key, value in layer.items() if key not in ("name", "type")}
    if "name" not in layer:
        raise Error("the key 'name' is missing")
    shortcuts = SHORTCUTS.get(layer["type"], ())
    check_keys(options, needed, optional, VALUES | {"shortcut": one_of(*shortcuts)} if shortcuts else VALUES)
    if layer["type"] in BLOCKS and layer.get("padding", "same") != "same":
        raise Error(f"'padding' is {layer['padding']}, expected \"same\", or no such key for symmetric padding")


def _check_name(layer, seen):
    # A name becomes an attribute, hence the words; `features.0` is a member of a group and groups count up from 0.
    name = layer["name"]
    match = re.fullmatch(r"([A-Za-z]\w*)(?:\.(\d+))?", name) if isinstance(name, str) else None
    if not match:
        raise Error("a name is a word, or a word, a dot and a number in a group such as features.0, features.1")
    group, number = match.groups()
    if name in seen:
        raise Error("an earlier layer has the same name")
    if number is None:
        if any(other.startswith(f"{name}.") for other in seen):
            raise Error(f"the name is taken by the group that begins with '{name}.0'")
    else:
        members = [other for other in seen if other.startswith(f"{group}.")]
        if group in seen or int(number) != len(members) or members != seen[len(seen) - len(members) :]:
            raise Error("the layers of a group follow one another and count up from 0")
        if "repeat" in layer:
            raise Error("a layer of a group cannot repeat")


def unroll(spec):
    """The chain as a list of `Layer`: blocks with `repeat` one by one, the first of them with the stride."""
    chain = []
    for entry in spec["layers"]:
        options = dict(entry)
        name, kind, repeat = options.pop("name"), options.pop("type"), options.pop("repeat", None)
        sizes = [options.pop(key) for key in ("in", "out") if key in options]
        if repeat is None:
            chain.append(Layer(name, kind, sizes, options))
            continue
        others = {key: value for key, value in options.items() if key not in _OF_THE_FIRST}
        chain.append(Layer(f"{name}.0", kind, sizes, options))
        chain += [Layer(f"{name}.{i}", kind, [sizes[1], sizes[1]], others) for i in range(1, repeat)]
    return chain


def with_classes(spec, count):
    """The spec of the network with another number of classes: its last layer with weights has as many outputs."""
    last = classifier(spec)
    if last["out"] == count:
        return spec
    kept = {key: value for key, value in spec.items() if key not in ("parameters", "classes")}
    layers = [layer | {"out": count} if layer is last else layer for layer in spec["layers"]]
    called = {"title": f"{spec['title']}, {count} classes"} if "title" in spec else {}
    return load(kept | called | {"name": f"{spec['name']}_{count}_classes", "layers": layers})


def classifier(spec):
    """The last layer with weights, a linear one or a convolution. Raises `Error` where there is no such."""
    last = next((layer for layer in reversed(spec["layers"]) if "out" in layer), None)
    if not last or last["type"] not in ("linear", "conv"):
        raise Error(f"{spec['name']} does not end in a linear layer or a convolution, so it has no classifier")
    return last


def head(spec):
    """(names of the layers before the global pooling, name of the classifier behind it) of a network that ends in these.

    Raises `Error` unless the classifier is one linear layer or 1x1 convolution, with nothing else but flatten and dropout
    behind the pooling: it can then be applied at every position.
    """
    chain = unroll(spec)
    pool = max((number for number, layer in enumerate(chain) if layer.type == "global_avg_pool"), default=len(chain))
    behind = [layer for layer in chain[pool + 1 :] if layer.type not in ("flatten", "dropout")]
    if [layer.type == "linear" or _one_by_one(layer) for layer in behind] != [True]:
        wanted = "a global_avg_pool and one linear layer or 1x1 convolution behind it"
        raise Error(f"{spec['name']} has no class maps: it does not end in {wanted}")
    return [layer.name for layer in chain[:pool]], behind[0].name


def _one_by_one(layer):
    options = {"stride": 1, "padding": 0} | layer.options
    return layer.type == "conv" and options["kernel"] == options["stride"] == 1 and options["padding"] in (0, "same")

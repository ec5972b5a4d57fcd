"""The networks that come with the project: finding, reading and checking their specs."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import limits, shapes
from .checks import NUMBERS, POSITIVE, Error, Value, are_numbers, check_keys, nearest, one_of, whole
from .files import check_readable, read_json
from .spec import CLASSES, LISTS, SPEC_VALUES, SPECS, Layer, Spec, check_layers, classifier, unroll

UPSAMPLES = ("upsample", "upsample_transposed")  # the last layer of a network for segmentation
TOPS = ("global_avg_pool", "adaptive_avg_pool", "flatten")  # the first of these begins the classifier

PREPROCESSING = {
    "resize": whole(1),  # the shorter side, in pixels
    "crop": whole(1),  # the side of the square in the centre, in pixels
    "channels": one_of("RGB", "BGR", "L"),
    "scale": POSITIVE,
    "mean": Value(are_numbers, "a list of numbers, one per channel", NUMBERS),
    "std": Value(
        lambda v: are_numbers(v) and all(n > 0 for n in v),
        "a list of numbers above 0, one per channel",
        {"type": "array", "items": POSITIVE.schema},
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
        raise Error(f"expected a network's name, the path of a JSON file or a spec, not {network!r}")
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
    spec = read_json(path, network, limits.SPEC)
    if isinstance(spec, dict) and isinstance(spec.get("classes"), str) and spec["classes"] not in LISTS:
        try:
            spec["classes"] = names_in(spec["classes"], path.parent)
        except Error as error:
            raise Error(f"{network}: {error}") from None
    return spec, str(network)


def names_in(classes: str, folder: Path) -> list[str]:
    """The class names in a text file of a folder, one a line, or in one of the lists that come with the project.

    Raises `Error` for a file that is missing, empty or has an empty line.
    """
    path = CLASSES / f"{classes}.txt" if classes in LISTS else folder / classes
    where = f"'classes' is {json.dumps(classes)}"
    if not path.is_file():
        known = nearest(classes, LISTS) or f"; expected {SPEC_VALUES['classes'].words}"
        raise Error(f"{where}, but there is no file {path}{known}")
    try:
        check_readable(path, most=limits.SPEC)
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (Error, OSError, UnicodeDecodeError) as error:
        raise Error(f"{where}, which cannot be read: {error}") from None
    if "" in lines or not lines:
        number = lines.index("") + 1 if lines else 1
        raise Error(f"{where}, whose line {number} is empty; expected one class name per line")
    return lines


def _check_spec(spec: Any) -> None:
    check_layers(spec)
    rows = shapes.layers(spec)
    count = shapes.parameters(rows)
    if spec.get("parameters", count) != count:
        given = spec["parameters"]
        raise Error(f'"parameters" is {given:,}, but the layers have {count:,}: correct it, or delete the line "parameters"')
    if "preprocessing" in spec:
        try:
            _check_preprocessing(spec)
        except Error as error:
            raise Error(f"preprocessing: {error}") from None
    if "classes" in spec:
        _check_classes(spec, rows[-1].shape[0])


def _check_classes(spec: Spec, outputs: int) -> None:
    given = spec["classes"]
    if isinstance(given, str) and given not in LISTS:  # a path, in a file
        expected = nearest(given, LISTS) or f", expected one of {', '.join(LISTS)}, or a list of names"
        raise Error(f"'classes' is {json.dumps(given)}{expected}")
    count = len(_class_lines(spec))
    if count != outputs:
        listed = json.dumps(given) if isinstance(given, str) else "a list"
        raise Error(
            f"'classes' is {listed}, which has {count} names, but the network has {outputs} outputs: list as many, or delete "
            'the line "classes"'
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


def variant(spec: Spec, classes: int | None = None, channels: int | None = None) -> Spec:
    """The spec of the network with another number of classes, the outputs of its classifier, or of channels of its images.

    It is called NAME_37_classes, NAME_1_channel or both; it is the spec itself, if that has these numbers already. Names of
    classes and "parameters" are left out where they no longer hold. "preprocessing" follows the channels: for grey images it
    has "L" and the averages of the means and of the deviations, for colour "RGB" and the one mean and deviation three times;
    for other numbers of channels there is none, as pictures have 1 or 3.
    Raises `Error` if the network has no classifier, or its layers do not fit together any more.
    """
    before = spec
    for name, count in (("classes", classes), ("channels", channels)):
        if count is not None and not whole(1).accepts(count):
            raise Error(f"{name} is {count!r}, expected {whole(1).words}")
    if classes and classifier(spec)["out"] != classes:
        place = spec["layers"].index(classifier(spec))
        layers = [
            layer | ({"out": classes} if number == place else {"in": classes} if number > place and "in" in layer else {})
            for number, layer in enumerate(spec["layers"])
        ]
        spec = _without(spec, "classes") | {"layers": layers} | _called(spec, f"{classes} class{'es' * (classes > 1)}")
    if channels and spec["input"][0] != channels:
        spec = _with_channels(spec, channels) | _called(spec, f"{channels} channel{'s' * (channels > 1)}")
    return spec if spec is before else load(_without(spec, "parameters"))


def outputs(spec: Spec) -> int | None:
    """The number of classes, the outputs of the classifier, or None if the network has none."""
    try:
        return int(classifier(spec)["out"])
    except Error:
        return None


def _without(spec: Spec, key: str) -> Spec:
    return {name: value for name, value in spec.items() if name != key}


def _called(spec: Spec, words: str) -> Spec:
    """The name and title of a variant of a spec."""
    title = {"title": f"{spec['title']}, {words}"} if "title" in spec else {}
    return title | {"name": f"{spec['name']}_{words.replace(' ', '_')}"}


def _with_channels(spec: Spec, channels: int) -> Spec:
    before = spec["input"][0]
    layers, changing = [], True
    for layer in spec["layers"]:
        if changing and "in" in layer:
            layer = layer | {"in": layer["in"] // before * channels}  # of a flattened image, a multiple of the channels
            changing = "out" not in layer
        layers.append(layer)
    spec = spec | {"input": [channels, *spec["input"][1:]], "layers": layers}
    if "preprocessing" not in spec:
        return spec
    if channels not in (1, 3):
        return _without(spec, "preprocessing")
    given = spec["preprocessing"]
    numbers = {key: [round(sum(given[key]) / before, 6)] * channels for key in ("mean", "std")}
    return spec | {"preprocessing": given | {"channels": {1: "L", 3: "RGB"}[channels]} | numbers}


def with_size(spec: Spec, size: Sequence[int]) -> Spec:
    """The spec of the network for images of another size, (height, width), whose preprocessing gives pictures of that size.

    "crop" becomes that size and "resize" keeps its ratio to it. For images that are not square, both are left out and pictures
    are resized to the size.
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

    `keras.applications` builds it with `include_top=False`. The classifier of a network for segmentation is what comes before
    the upsampling. A spec without a classifier is returned as it is.
    """
    layers = spec["layers"]
    end = next((i for i, layer in enumerate(layers) if layer["type"] in TOPS), None)
    if is_dense(spec):
        end = layers.index(classifier(spec))
    if not end:
        return spec
    rest = _without(_without(spec, "parameters"), "classes")
    return rest | {"name": f"{spec['name']}_notop", "layers": layers[:end]}


def segmentation(spec: Spec, classes: int) -> Spec:
    """The spec of a network that classifies every pixel: the chain up to the last map, a 1x1 convolution, and upsampling.

    It is called NAME_seg, and gives logits (classes, height, width) for images whose sides are multiples of the map's stride.
    Raises `Error` unless the network has class maps, see `head`.
    """
    head(spec)
    trunk = headless(spec)
    last = shapes.layers(trunk)[-1]
    layers = [
        {"name": "seg", "type": "conv", "in": last.shape[0], "out": classes, "kernel": 1},
        {"name": "up", "type": "upsample", "scale": last.stride},
    ]
    title = {"title": f"{spec['title']} for segmentation"} if "title" in spec else {}
    return load(trunk | title | {"name": f"{spec['name']}_seg", "layers": [*trunk["layers"], *layers]})


def is_dense(spec: Spec) -> bool:
    """Whether a network classifies every pixel: upsampling follows its classifier, so that it ends in a map of logits."""
    return spec["layers"][-1]["type"] in UPSAMPLES and outputs(spec) is not None


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
    """The names of the network's classes, or None if the spec has none; ImageNet's without their WordNet numbers."""
    return [re.sub(r"^n\d{8} ", "", line) for line in _class_lines(spec)] if "classes" in spec else None


def _class_lines(spec: Spec) -> list[str]:
    return spec["classes"] if isinstance(spec["classes"], list) else names_in(spec["classes"], CLASSES)


def class_numbers(spec: Spec) -> dict[str, int]:
    """{`class_key` of a name: number of the class} for all names of a network's classes, synonyms and WordNet numbers too.

    A name that several classes have is left out.
    """
    numbers: dict[str, set[int]] = {}
    for number, line in enumerate(_class_lines(spec) if "classes" in spec else ()):
        wordnet = re.match(r"n\d{8} ", line)
        label = line[wordnet.end() :] if wordnet else line
        for name in {*([wordnet[0]] if wordnet else []), label, *label.split(", ")}:
            numbers.setdefault(class_key(name), set()).add(number)
    return {name: next(iter(of)) for name, of in numbers.items() if len(of) == 1}


def class_key(name: str) -> str:
    """A class name without variations in spelling: "Golden_Retriever" becomes "golden retriever".

    Accented letters are one character each, as macOS's names of folders do not have them.
    """
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()

"""What other projects call the arrays of a network: one name rewritten into this project's form.

`Source` is a name in a file split into its layer, dots between the parts, and what the array is to the layer. A dialect turns
the layer's name into ours; which one holds for a file is decided in `renaming`, by how many names and shapes then agree.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from . import keras_files, shapes

# Keras's and TensorFlow's word for an array of a layer: ours
WORDS = {"kernel": "weight", "bias": "bias"} | dict(zip(keras_files.KERAS[4], keras_files.OURS[4], strict=True))
WORDS |= {word: word for word in keras_files.OURS[4]}
WORDS |= {"weights": "weight", "biases": "bias"}
# Wrappers of PyTorch's that put a word into the middle of names
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|(?<=\.)module)(?=\.)")
# Arrays that our networks have no place for, and why.
IGNORED = (
    (r"(^|\.)num_batches_tracked$", "batch counter, which nothing reads"),
    (r"(^|\.)n_averaged$", "counter of averaged weights, which nothing reads"),
    (r"(^|\.)total_(ops|params)$", "counter of a profiler, which nothing reads"),
    (r"^(module\.)?aux[12]\.|^loss[12][./]", "auxiliary classifier, used only in training"),
    (r"^optimizer", "optimiser state"),
)
# Classifiers in circulation, after the prefix of the whole network or instead of it
HEAD = re.compile(
    r"(?:.*\.)?(fc|fc_out|linear|head(?:\.fc)?|heads?\.0|cls|cls_head\.fc|classif|classifier(?:\.[01])?|logits|predictions"
    r"|last_linear|output|out|fc1000|dense(?:_\d+)?|\d+)"
)
_SHORTCUT = r"(?:shortcut|identity_downsample|identity_shortcut|skip|skip_connection|res_conv|projection|proj)"
# (pattern, replacement) for names inside a block, which follow "layer1.0."
_INSIDE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # Sequential of convolution, norm, relu: weiaicunzai's pytorch-cifar100 and its copies
    (r"\.residual_function\.(\d)(?=\.|$)", lambda m: f".{('conv', 'bn')[int(m[1]) % 3]}{int(m[1]) // 3 + 1}"),
    # Hugging Face
    (r"\.layer\.(\d)\.convolution(?=\.|$)", lambda m: f".conv{int(m[1]) + 1}"),
    (r"\.layer\.(\d)\.normalization(?=\.|$)", lambda m: f".bn{int(m[1]) + 1}"),
    (rf"\.{_SHORTCUT}\.(?:convolution|conv|0)(?=\.|$)", ".downsample.0"),
    (rf"\.{_SHORTCUT}\.(?:normalization|BatchNorm|norm|bn|1)(?=\.|$)", ".downsample.1"),
    (rf"\.{_SHORTCUT}$", ".downsample.0"),
    (r"\.downsample\.(?:conv)$", ".downsample.0"),
    (r"\.downsample\.(?:bn|norm)$", ".downsample.1"),
    # detectron2 and tf-slim have the norm in the convolution; others call it norm1
    (r"\.conv(\d)\.(?:norm|BatchNorm)$", r".bn\1"),
    (r"\.norm(\d)$", r".bn\1"),
)
BASE = "base."  # see `numbered_children`
_STEM = (
    (r"^(?:embedder\.)?embedder\.convolution$", "conv1"),
    (r"^(?:embedder\.)?embedder\.normalization$", "bn1"),
    (r"^stem\.conv1\.norm$", "bn1"),
    (r"^stem\.(conv1|bn1)$", r"\1"),
    (r"^conv1\.BatchNorm$", "bn1"),
    (r"^conv1\.0$", "conv1"),
    (r"^conv1\.1$", "bn1"),
    (r"^bn_conv1$", "bn1"),
)
_STAGE = re.compile(
    r"^(?:encoder\.)?(?:stages?|layers?|blocks?|groups?|res|conv)[._]?(\d)(?:_x)?(?:\.(?:layers|blocks|units))?[._]"
    r"(?:unit_|block_?)?(\d+)(?:\.bottleneck_v1)?(?=\.)"
)
# Keras's first ResNets and Caffe's: res2a_branch2a, bn4b22_branch1
_BRANCH = re.compile(r"^(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])$")
# Caffe's GoogLeNet, with the names of its files or with dots in them
_GOOGLENET = (
    (r"^conv1[./]7x7_s2$", "conv1"),
    (r"^conv2[./]3x3_reduce$", "conv2"),
    (r"^conv2[./]3x3$", "conv3"),
    (r"^inception_(\d\w)[./]1x1$", r"inception\1.branch1.conv"),
    (r"^inception_(\d\w)[./]3x3_reduce$", r"inception\1.branch2.0.conv"),
    (r"^inception_(\d\w)[./]3x3$", r"inception\1.branch2.1.conv"),
    (r"^inception_(\d\w)[./]5x5_reduce$", r"inception\1.branch3.0.conv"),
    (r"^inception_(\d\w)[./]5x5$", r"inception\1.branch3.1.conv"),
    (r"^inception_(\d\w)[./]pool_proj$", r"inception\1.branch4.1.conv"),
    (r"^loss3[./]classifier$", "fc"),
)


class Source(NamedTuple):
    """A name in a file: its layer, our word for the array, and whether Keras or TensorFlow named it and so laid it out."""

    layer: str
    word: str
    keras: bool


def source_of(name: str) -> Source:
    """A name of PyTorch's, "layer1.0.bn1.weight", or Keras's, "conv1_bn/gamma", in parts."""
    layer, _, last = name.rpartition("/")
    if layer and last in WORDS:
        return Source(layer, WORDS[last], True)
    layer, _, last = WRAPPERS.sub(r"\1", name).replace("..", ".").removeprefix(".").rpartition(".")
    return Source(layer, last, False)


def shifts(layers: Iterable[str]) -> list[int]:
    """What to add to the numbers of stages, which count from 0, 1 or 2 in the dialects, to make them count from 1."""
    numbers = [int(match[1]) for match in map(_STAGE.match, _slashes_to_dots(layers)) if match]
    return [1 - min(numbers)] if numbers else [0]


def block_shift(layers: Iterable[str]) -> int:
    """The same for the numbers of blocks, which count from 0."""
    numbers = [int(match[2]) for match in map(_STAGE.match, _slashes_to_dots(layers)) if match]
    return -min(numbers) if numbers else 0


def _slashes_to_dots(layers: Iterable[str]) -> list[str]:
    return [layer.replace("/", ".") for layer in layers]


def residual(layer: str, stages: int, blocks: int) -> str:
    """A layer of a residual network in any of the dialects; `stages` and `blocks` are added to their numbers."""
    layer = layer.replace("/", ".")
    branch = _BRANCH.match(layer)
    if branch:
        kind, stage, letter, number, place = branch.groups()
        block = int(number) if number else ord(letter) - ord("a")
        part = "conv" if kind == "res" else "bn"
        last = f"downsample.{int(part == 'bn')}" if place == "1" else f"{part}{ord(place[1]) - ord('a') + 1}"
        return f"layer{int(stage) - 1}.{block}.{last}"
    stage = _STAGE.match(layer)
    if stage:
        layer = f"layer{int(stage[1]) + stages}.{int(stage[2]) + blocks}{layer[stage.end() :]}"
        for pattern, replacement in _INSIDE:
            layer = re.sub(pattern, replacement, layer)
        return layer
    for pattern, word in _STEM:
        layer = re.sub(pattern, word, layer)
    return layer


def googlenet(layer: str) -> str:
    """A layer of Caffe's GoogLeNet."""
    for pattern, replacement in _GOOGLENET:
        layer = re.sub(pattern, replacement, layer)
    return layer


def numbered_children(layer: str, children: list[str]) -> str:
    """A layer under the number that its outermost module has in a Sequential: "4.0.conv1" is "layer1.0.conv1".

    The DRN authors' networks for segmentation have that Sequential as "base", beside the new classifier.
    """
    number, dot, rest = layer.removeprefix(BASE).partition(".")
    return f"{children[int(number)]}{dot}{rest}" if number.isdigit() and int(number) < len(children) else layer


def application_names(rows: Iterable[shapes.Row]) -> dict[str, str]:
    """{layer: what `keras.applications` calls it} of the ResNets with bottlenecks and the VGGs.

    A ResNet's shortcut is number 0 of its block. A VGG's convolutions count from 1 after every pool.
    """
    rows = list(rows)
    names: dict[str, str] = {}
    linear: list[str] = []
    block, number = 1, 0
    residual = any(row.parts for row in rows)
    for row in shapes.leaves(rows):
        inside = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))", row.name)
        if inside:
            stage, index, part, count, shortcut = inside.groups()
            place = f"conv{int(stage) + 1}_block{int(index) + 1}"
            names[row.name] = f"{place}_{count}_{part}" if part else f"{place}_0_{('conv', 'bn')[int(shortcut)]}"
        elif row.type == "linear":
            linear.append(row.name)
        elif row.name in ("conv1", "bn1") and residual:
            names[row.name] = f"conv1_{row.name[:-1]}"
        elif row.type == "max_pool":
            block, number = block + 1, 0
        elif row.type == "conv" and not residual:
            number += 1
            names[row.name] = f"block{block}_conv{number}"
    names |= {name: f"fc{number}" for number, name in enumerate(linear, start=1)}
    return names | {name: "predictions" for name in linear[-1:]}


_AUTOMATIC = re.compile(r"(conv2d|convolution2d|batch_normalization|batchnormalization|dense)(?:_(\d+))?")
_KINDS = {"c": ("conv", "gate"), "b": ("batch_norm",), "d": ("linear",)}  # by the first letter of Keras's class


def automatic(layers: Iterable[str], rows: list[shapes.Row]) -> list[dict[str, str]]:
    """Ways to read names that Keras has numbered as layers were made, `conv2d_17`: each {their layer: ours}.

    Layers of a class are taken in order; in a block, the shortcut is made last or first. An empty list if other names are
    among them, or their numbers of layers differ from the network's.
    """
    matches = {layer: _AUTOMATIC.fullmatch(layer) for layer in layers}
    numbered = {layer: (match[1][0], int(match[2] or 0)) for layer, match in matches.items() if match}
    if not numbered or len(numbered) < len(matches):
        return []
    ways: list[dict[str, str]] = []
    for shortcut_first in (False, True):
        order = [leaf for row in rows for leaf in _in_order(row, shortcut_first) if leaf.weights]
        way: dict[str, str] = {}
        for letter, types in _KINDS.items():
            ours = [leaf.name for leaf in order if leaf.type in types]
            theirs = sorted((layer for layer, (kind, _) in numbered.items() if kind == letter), key=lambda name: numbered[name])
            if letter != "d" and len(ours) != len(theirs):
                return []
            way |= dict(zip(theirs, ours, strict=False))
        if way not in ways:
            ways.append(way)
    return ways


def _in_order(row: shapes.Row, shortcut_first: bool) -> list[shapes.Row]:
    parts = list(row.parts or (row,))
    return sorted(parts, key=lambda part: ".downsample" not in part.name) if shortcut_first else parts


def is_automatic(layer: str) -> bool:
    """Whether Keras gave a layer its name by counting."""
    return bool(_AUTOMATIC.fullmatch(layer.rpartition(".")[2]))

"""Rung 1, by arithmetic: every spec is sound and has the parameters of its source; a wrong one gets one clear message."""

import json

import pytest

import shared
from shared import shapes

# Trainable parameters, from the papers, torchvision, the DRN authors' code, or the listings named in the specs.
PARAMETERS = {
    "mnist_residual": 41_514,
    "cifar10_resnet": 195_738,
    "resnet18_gray": 11_178_378,
    "resnet18_cifar100": 11_227_300,
    "resnet34_cifar100": 21_339_172,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_v1": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "plain20": 269_722,
    "plain56": 853_018,
    "drn_a_18": 11_689_512,
    "drn_a_34": 21_797_672,
    "drn_a_50": 25_557_032,
    "drn_b_26": 21_126_584,
    "drn_c_26": 21_126_584,
    "drn_c_42": 31_234_744,
    "drn_c_58": 41_591_608,
    "drn_d_22": 16_393_752,
    "drn_d_24": 21_114_392,
    "drn_d_38": 26_501_912,
    "drn_d_40": 31_222_552,
    "drn_d_54": 35_809_176,
    "drn_d_56": 40_529_816,
    "drn_d_105": 54_801_304,
    "drn_d_107": 59_521_944,
    "drn_c_26_seg": 20_623_331,
    "drn_d_22_seg": 15_890_499,
    "drn_d_38_seg": 25_998_659,
    "drn_d_105_seg": 54_298_051,
    "lenet": 61_610,
    "lenet5": 61_706,
    "lenet_caffe": 431_080,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_keras": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_keras": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet": 6_998_552,
    "googlenet_bn": 6_624_904,
    "inception_a_cifar": 796_650,
    "preact_resnet18": 11_687_720,
    "preact_resnet50": 25_549_352,
    "preact_resnet110": 1_727_962,
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    "resnet110_bn_after_addition": 1_727_962,
    "resnet110_relu_before_addition": 1_727_962,
    "resnet110_relu_only_preactivation": 1_727_962,
    "resnet110_half_shortcut": 1_727_962,
    "resnet110_half_sum": 1_727_962,
    "resnet110_exclusive_gate": 1_824_186,
    "resnet110_shortcut_gate": 1_824_186,
    "resnet110_conv_shortcut": 1_824_186,
    "resnet110_dropout_shortcut": 1_727_962,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "resnet50_keras": 25_583_592,
    "resnet101_keras": 44_601_832,
    "resnet152_keras": 60_268_520,
    "resnet10_small": 309_178,
    "drn_a_10_small": 309_178,
    "drn_b_18_small": 899_670,
    "drn_c_18_small": 899_670,
}


def test_every_network_is_counted_here():
    assert sorted(shared.names()) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", shared.names())
def test_parameters(name):
    spec = shared.load(name)
    assert shapes.parameters(shapes.layers(spec)) == spec["parameters"] == PARAMETERS[name]


@pytest.mark.parametrize("name", shared.names())
def test_a_spec_says_where_it_is_from(name):
    spec = shared.load(name)
    assert spec["name"] == name
    assert spec["title"] and spec["source"]


@pytest.mark.parametrize("name", [name for name in shared.names() if name.startswith("drn_")])
def test_a_dilated_network_keeps_a_map_of_28x28(name):
    rows = shapes.layers(shared.load(name), (224, 224))
    end = "seg" if name.endswith("_seg") else "avgpool"
    last = rows[[row.name for row in rows].index(end) - 1]
    assert last.shape[1:] == (28, 28) and last.stride == 8


def test_maps_of_resnet18_gray():
    rows = {row.name: row.shape for row in shapes.layers(shared.load("resnet18_gray"))}
    names = ["maxpool", "layer1.1", "layer2.1", "layer3.1", "layer4.1", "avgpool", "flatten", "fc"]
    maps = [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512, 1, 1), (512,), (10,)]
    assert [rows[name] for name in names] == maps


def test_receptive_field_and_dilation():
    rows = {row.name: row for row in shapes.layers(shared.load("drn_a_18"))}
    # 7x7 of stride 2, pool of stride 2, then 3x3 convolutions: +2 * 4 each in layer1, and so on by hand.
    assert [rows[n].field for n in ("conv1", "maxpool", "layer1.1", "layer2.1")] == [7, 11, 43, 99]
    blocks = ("layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
    assert [rows[name].dilations for name in blocks] == [(1,), (1, 2), (2,), (2, 4), (4,)]


def test_multiply_accumulates():
    # 4.09 G is torchvision's figure for ResNet-50, 1.81 G for ResNet-18.
    assert sum(row.macs for row in shapes.layers(shared.load("resnet50"))) == pytest.approx(4.09e9, rel=1e-3)
    assert sum(row.macs for row in shapes.layers(shared.load("resnet18"))) == pytest.approx(1.814e9, rel=1e-3)


def small(**changes):
    spec = {
        "name": "small",
        "input": [3, 16, 16],
        "layers": [
            {"name": "conv1", "type": "conv", "in": 3, "out": 8, "kernel": 3, "padding": 1},
            {"name": "bn1", "type": "batch_norm", "in": 8},
            {"name": "layer1", "type": "basic", "in": 8, "out": 16, "stride": 2, "repeat": 2},
            {"name": "avgpool", "type": "global_avg_pool"},
            {"name": "flatten", "type": "flatten"},
            {"name": "fc", "type": "linear", "in": 16, "out": 10},
        ],
    }
    return spec | changes


def changed(number, **changes):
    spec = small()
    spec["layers"][number] |= changes
    spec["layers"][number] = {key: value for key, value in spec["layers"][number].items() if value is not None}
    return spec


# A right line of each type of layer that is not in `small`, without its name.
RIGHT = {
    "local_response_norm": {"size": 5},
    "scaled_tanh": {},
    "dropout": {"rate": 0.5},
    "max_pool": {"kernel": 2},
    "adaptive_avg_pool": {"size": 6},
    "upsample": {"scale": 2},
    "upsample_transposed": {"in": 8, "scale": 2},
    "bottleneck": {"in": 8, "out": 16},
    "preact_basic": {"in": 8, "out": 16},
    "preact_bottleneck": {"in": 8, "out": 16},
    "residual_unit": {"in": 8, "out": 16},
    "conv_norm_relu": {"in": 8, "out": 16, "kernel": 3},
    "inception": {"in": 8, "out": 16, "branches": [[4], [2, 6], [2, 5], [1]]},
    "inception_a": {"in": 8, "out": 256},
}


def alone(kind, **options):
    """A spec of one layer; an option that is None is left out."""
    layer = {"name": "mine", "type": kind, **RIGHT[kind], **options}
    return small(input=[8, 16, 16], layers=[{key: value for key, value in layer.items() if value is not None}])


def prepared(**changes):
    given = {"resize": 20, "crop": 16, "channels": "RGB", "scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1], **changes}
    return small(preprocessing={key: value for key, value in given.items() if value is not None})


def behind_flatten(kind):
    return small(layers=[*small()["layers"][:5], {"name": "mine", "type": kind, **RIGHT[kind]}])


MISTAKES = {
    "key with a typo": (changed(0, strid=2), ["layer 'conv1'", "'strid'", "did you mean 'stride'"]),
    "key of another type": (changed(1, kernel=3), ["layer 'bn1'", "'kernel'", "expected in, eps, momentum"]),
    "unknown type": (changed(2, type="basik"), ["layer 'layer1'", "'basik'", "did you mean 'basic'"]),
    "type missing": (changed(2, type=None), ["layer 'layer1'", "'type' is missing"]),
    "size missing": (changed(0, out=None), ["layer 'conv1'", "'out' is missing"]),
    "sizes that do not chain": (changed(1, **{"in": 9}), ["layer 'bn1'", "'in' is 9", "conv1 gives 8"]),
    "flattened size": (changed(5, **{"in": 64}), ["layer 'fc'", "'in' is 64", "flatten gives 16"]),
    "duplicate name": (changed(1, name="conv1"), ["layer 'conv1'", "same name"]),
    "zero stride": (changed(2, stride=0), ["layer 'layer1'", "'stride' is 0", "at least 1"]),
    "stride that is no number": (changed(2, stride="2"), ["layer 'layer1'", "'stride' is \"2\"", "whole number"]),
    "true for a number": (changed(2, stride=True), ["layer 'layer1'", "'stride' is true", "whole number"]),
    "one for a truth": (changed(0, bias=1), ["layer 'conv1'", "'bias' is 1", "one of true, false"]),
    "padding": (changed(0, padding="valid"), ["layer 'conv1'", "'padding' is \"valid\"", '"same"']),
    "pixels of padding in a block": (changed(2, padding=1), ["layer 'layer1'", "'padding' is 1", '"same"']),
    "shortcut": (changed(2, shortcut="identity"), ["layer 'layer1'", "'shortcut' is \"identity\"", '"projection"']),
    "stride with dilation": (changed(2, dilation=2), ["layer 'layer1.0'", "stride and a dilation"]),
    "bottleneck's width": (changed(2, type="bottleneck", out=18), ["layer 'layer1.0'", "'out' is 18", "multiple of 4"]),
    "shortcut that would drop channels": (
        changed(2, shortcut="pad", out=4),
        ["layer 'layer1.0'", "only adds channels", "'in' is 8"],
    ),
    "kernel larger than the map": (changed(0, kernel=19, padding=0), ["layer 'conv1'", "too small", "19x19"]),
    "name with a space": (changed(0, name="conv 1"), ["layer 'conv 1'", "a name is a word"]),
    "group that starts at 1": (changed(0, name="conv.1"), ["layer 'conv.1'", "count up from 0"]),
    "type that is no word": (changed(0, type=["conv"]), ["layer 'conv1'", "unknown type ['conv']"]),
    "flatten of a vector": (
        small(layers=[*small()["layers"][:5], {"name": "again", "type": "flatten"}]),
        ["layer 'again'", "it takes a map", "flatten gives 16"],
    ),
    "name of the network": (small(name="a/b"), ["'name' is \"a/b\"", "a word"]),
    "linear layer on a map": (
        small(layers=small()["layers"][:3] + small()["layers"][5:]),
        ["layer 'fc'", "a vector", "layer1.1"],
    ),
    "parameters": (small(parameters=5), ['"parameters" is 5', "the layers have"]),
    "input": (small(input=[3, 16]), ["'input' is [3, 16]", "[channels, height, width]"]),
    "no layers": (small(layers=[]), ["'layers' is []", "at least one"]),
    "layer that is no object": (small(layers=["conv"]), ["layer 1", '"conv"']),
    "spec key with a typo": (small(titel="x"), ["'titel'", "did you mean 'title'"]),
    "dropout without a rate": (alone("dropout", rate=None), ["layer 'mine'", "'rate' is missing"]),
    "pool without a size": (alone("adaptive_avg_pool", size=None), ["layer 'mine'", "'size' is missing"]),
    "module without branches": (alone("inception", branches=None), ["layer 'mine'", "'branches' is missing"]),
    "PyTorch's word for a rate": (alone("dropout", p=0.5), ["layer 'mine'", "unknown key 'p'", "expected rate"]),
    "module that repeats": (alone("inception_a", repeat=2), ["layer 'mine'", "unknown key 'repeat'", "expected in, out"]),
    "gate of another unit": (alone("preact_basic", activation="original"), ["layer 'mine'", "unknown key 'activation'"]),
    "groups that do not divide": (
        alone("bottleneck", groups=3),
        ["layer 'mine'", "'groups' is 3", "divisor", "width inside, 4"],
    ),
    "more groups than channels": (alone("bottleneck", groups=8, width=4), ["'groups' is 8", "divisor", "width inside, 4"]),
    "width of a pre-activation": (alone("preact_bottleneck", out=18), ["layer 'mine'", "'out' is 18", "multiple of 4"]),
    "unit that drops channels": (alone("residual_unit", out=4), ["layer 'mine'", "only adds channels", "'in' is 8", "'out' 4"]),
    "branches that do not add up": (
        alone("inception", out=17),
        ["layer 'mine'", "'out' is 17", "the branches have 16 channels together"],
    ),
    "even kernel of a branch": (alone("inception", kernel=4), ["layer 'mine'", "'kernel' is 4", "odd"]),
    "no channels for the pool": (alone("inception_a", out=224), ["layer 'mine'", "'out' is 224", "above 224"]),
    "padding of more than half a pool": (
        alone("max_pool", padding=2, ceil=True),
        ["layer 'mine'", "'padding' is 2", "at most half of the kernel, 1"],
    ),
    "norm behind flatten": (behind_flatten("local_response_norm"), ["layer 'mine'", "it takes a map", "flatten gives 16"]),
    "pool behind flatten": (behind_flatten("adaptive_avg_pool"), ["layer 'mine'", "it takes a map", "flatten gives 16"]),
    "preprocessing that is no object": (
        small(preprocessing="imagenet"),
        ["'preprocessing' is", "channels, scale, mean and std"],
    ),
    "preprocessing with a typo": (prepared(chanels="RGB"), ["preprocessing", "'chanels'", "did you mean 'channels'"]),
    "preprocessing without a key": (prepared(std=None), ["preprocessing", "the key 'std' is missing"]),
    "gray preprocessing of colours": (prepared(channels="L"), ["preprocessing", "'channels' is \"L\"", "the input has 3"]),
    "means for other channels": (prepared(mean=[0]), ["preprocessing", "'mean' is [0]", "the input has 3"]),
    "deviations for other channels": (prepared(std=[1, 1]), ["preprocessing", "'std' is [1, 1]", "the input has 3"]),
    "deviation of zero": (prepared(std=[1, 0, 1]), ["preprocessing", "'std' is [1, 0, 1]", "above 0"]),
    "crop of what was not resized": (prepared(resize=None), ["preprocessing", "'crop' is 16", "needs a 'resize'"]),
    "crop larger than the image": (prepared(resize=15), ["preprocessing", "'crop' is 16", "must not exceed 'resize', 15"]),
    "crop that the network does not take": (
        prepared(crop=8) | {"layers": [{"name": "mine", "type": "max_pool", "kernel": 9}]},
        ["preprocessing", "'crop' is 8", "layer 'mine'", "the image is too small"],
    ),
    "classes that are not there": (small(classes="imagnet"), ["'classes' is \"imagnet\"", "did you mean 'imagenet'"]),
    "classes for another network": (small(classes="imagenet"), ["'classes' is \"imagenet\"", "1000", "10 outputs"]),
    "weights that are no text": (small(weights=["torchvision"]), ["'weights' is", "a string"]),
}

WHOLE, ABOVE_0 = "a whole number of at least 1", "a number above 0"
NO_WHOLE, NOT_ABOVE_0, NO_TRUTH = (0, -1, 2.0, "5", True, [5], None), (0, -0.5, "1", True, [1], None), (0, 1, "true", None)
NO_BRANCHES = (
    16,
    [],
    [4, 8, 7, 1],
    {"1x1": [4]},
    [[4], [2, 6], [2, 5]],
    [[4], [6], [2, 5], [1]],
    [[4], [2, 6], [2, 5], [1, 1]],
)
NO_BRANCHES += tuple([[4], [2, wrong], [2, 5], [1]] for wrong in NO_WHOLE)
ACTIVATIONS = ("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation")
# layer, its key, values that this key may not have, and what the message says would be right
WRONG_VALUES = [
    ("local_response_norm", "size", NO_WHOLE, WHOLE),
    *(("local_response_norm", key, NOT_ABOVE_0, ABOVE_0) for key in ("alpha", "beta", "k")),
    ("adaptive_avg_pool", "size", NO_WHOLE, WHOLE),
    ("dropout", "rate", (1, 1.5, -0.1, "0.5", False, None), "a number of at least 0, below 1"),
    ("max_pool", "ceil", NO_TRUTH, "one of true, false"),
    *(("bottleneck", key, NO_WHOLE, WHOLE) for key in ("width", "groups")),
    *((kind, "first_activation", NO_TRUTH, "one of true, false") for kind in ("preact_basic", "preact_bottleneck")),
    *((kind, "norm", NO_TRUTH, "one of true, false") for kind in ("preact_basic", "residual_unit", "inception_a")),
    *(("residual_unit", key, NOT_ABOVE_0, ABOVE_0) for key in ("shortcut_scale", "residual_scale")),
    (
        "residual_unit",
        "activation",
        ("preact_basic", 1, None, ["original"]),
        "one of " + ", ".join(map(json.dumps, ACTIVATIONS)),
    ),
    ("conv_norm_relu", "kernel", NO_WHOLE, WHOLE),
    ("inception", "kernel", NO_WHOLE, WHOLE),
    (
        "inception",
        "branches",
        NO_BRANCHES,
        "four branches and the channels in them, [[1x1], [reduce, 3x3], [reduce, 5x5], [projection]]",
    ),
]


def test_the_spec_that_the_mistakes_are_made_in_is_right():
    assert shared.load(small())["name"] == "small"


def test_the_lines_that_the_mistakes_are_made_in_are_right():
    for kind in RIGHT:
        assert shared.load(alone(kind))["layers"][0]["type"] == kind
    assert shared.load(prepared())["preprocessing"]["crop"] == 16
    assert RIGHT.keys() | {layer["type"] for layer in small()["layers"]} | {"relu", "avg_pool"} == shared.spec.TYPES.keys()


@pytest.mark.parametrize(
    ("kind", "key", "values", "right"), WRONG_VALUES, ids=[f"{kind}-{key}" for kind, key, *_ in WRONG_VALUES]
)
def test_wrong_value(kind, key, values, right):
    for value in values:
        spec = alone(kind)
        spec["layers"][0][key] = value
        with pytest.raises(shared.Error) as error:
            shared.load(spec)
        assert str(error.value) == f"spec 'small': layer 'mine': {key!r} is {json.dumps(value)[:60]}, expected {right}"


@pytest.mark.parametrize("kind", sorted(shared.spec.SHORTCUTS.keys() & RIGHT.keys()))
def test_shortcut_of_another_block(kind):
    kinds = shared.spec.SHORTCUTS[kind]
    others = {other for block in shared.spec.SHORTCUTS.values() for other in block} - set(kinds)
    for other in [*others, "identity", 1, ["pad"]]:
        with pytest.raises(shared.Error) as error:
            shared.load(alone(kind, shortcut=other))
        right = "one of " + ", ".join(map(json.dumps, kinds))
        assert str(error.value) == f"spec 'small': layer 'mine': 'shortcut' is {json.dumps(other)}, expected {right}"


@pytest.mark.parametrize(
    ("key", "values", "right"),
    [
        ("resize", NO_WHOLE[:-1], WHOLE),
        ("crop", NO_WHOLE[:-1], WHOLE),
        ("channels", ("rgb", "GBR", 3, ["R", "G", "B"]), 'one of "RGB", "BGR", "L"'),
        ("scale", NOT_ABOVE_0[:-1], ABOVE_0),
        ("mean", (0.5, "0", ["0", "0", "0"], [0, 0, True], [0, 0, float("nan")]), "a list of numbers, one per channel"),
        ("std", (0.5, "1", [1, 1, "1"], [1, 1, -1], [1, 1, float("inf")]), "a list of numbers above 0, one per channel"),
    ],
)
def test_wrong_preprocessing(key, values, right):
    for value in values:
        with pytest.raises(shared.Error) as error:
            shared.load(prepared(**{key: value}))
        assert str(error.value) == f"spec 'small': preprocessing: {key!r} is {json.dumps(value)}, expected {right}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, tmp_path):
    spec, words = MISTAKES[mistake]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(shared.Error) as error:
        shared.load(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"name": "x",', "line 1, column 14: not JSON"),
        ("", "line 1, column 1: not JSON"),
        ("[]", "a spec is a JSON object"),
        ('{"name": "x", "name": "y"}', "duplicate key 'name'"),
        (b"\xff\xfe", "cannot be read"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_file_that_is_no_spec(text, words, tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(shared.Error, match=words) as error:
        shared.load(path)
    assert str(path) in str(error.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(small()).encode())
    assert shared.load(tmp_path / "mine.json")["name"] == "small"


def test_unknown_network():
    with pytest.raises(shared.Error, match="expected a network's name, .* not 3"):
        shared.load(3)
    with pytest.raises(shared.Error, match="'resnet19'.*did you mean 'resnet1"):
        shared.load("resnet19")
    with pytest.raises(shared.Error, match="nowhere.json: there is no such file"):
        shared.load("nowhere.json")


def test_image_too_small():
    with pytest.raises(shared.Error, match="layer 'avg_pool': the image is too small: layer3.1 gives 64x2x2, a window of 8x8"):
        shapes.layers(shared.load("cifar10_resnet"), (8, 8))
    with pytest.raises(shared.Error, match="the image is too small: the input gives 1x3x3, a window of 5x5 does not fit"):
        shapes.layers(shared.load("mnist_residual"), (3, 3))

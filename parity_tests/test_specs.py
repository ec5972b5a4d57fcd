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
    rows = shapes.layers(shared.load(name))
    last = rows[[row.type for row in rows].index("global_avg_pool") - 1]
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
    "shortcut that would drop channels": (changed(2, shortcut="pad", out=4), ["layer 'layer1.0'", '"pad"', "'in' is 8"]),
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
}


def test_the_spec_that_the_mistakes_are_made_in_is_right():
    assert shared.load(small())["name"] == "small"


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
        ('{"name": "x", "name": "y"}', "the key 'name' is there twice"),
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
    with pytest.raises(shared.Error, match="a network is a name, .* not 3"):
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

"""Networks that classify every pixel: the DRN authors' form, whose checkpoints load, and heads for other networks."""

import numpy as np
import pytest
import torch
from torch import nn

import shared
import torch_impl

# isort: split
import keras_impl
from shared import interpolation, networks, reading, shapes, weights
from twins import compare, export, ladder

TOLERANCES = ladder.TOLERANCES["float64"]


def conv3x3(in_channels, out_channels, stride=1, dilation=1):
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


class Block(nn.Module):
    """A residual block of a DRN, or without `residual` a plain one, under the authors' names."""

    def __init__(self, in_channels, out_channels, stride, dilations, residual):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.residual, self.downsample = residual, None
        if residual and (stride > 1 or in_channels != out_channels):
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return y.relu()


def units(in_channels, out_channels, kernel=3, stride=1, dilation=1):
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def stage(in_channels, out_channels, count, stride=1, dilations=(1, 1), residual=True):
    first = Block(in_channels, out_channels, stride, dilations, residual)
    others = [Block(out_channels, out_channels, 1, (dilations[1],) * 2, residual) for _ in range(1, count)]
    return nn.Sequential(first, *others)


class Segmenter(nn.Module):
    """DRN-C-26 or DRN-D-22 for segmentation in the authors' form, from the paper and the names in checkpoints."""

    def __init__(self, letter, classes=19):
        super().__init__()
        middle = [
            stage(32, 64, 2, 2),
            stage(64, 128, 2, 2),
            stage(128, 256, 2, dilations=(2, 2)),
            stage(256, 512, 2, dilations=(4, 4)),
        ]
        if letter == "c":
            start = [*units(3, 16, 7), stage(16, 16, 1), stage(16, 32, 1, 2)]
            end = [stage(512, 512, 1, dilations=(2, 2), residual=False), stage(512, 512, 1, residual=False)]
        else:
            start = [units(3, 16, 7), units(16, 16), units(16, 32, stride=2)]
            end = [units(512, 512, dilation=2), units(512, 512)]
        self.base = nn.Sequential(*start, *middle, *end)
        self.seg = nn.Conv2d(512, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 16, 8, 4, groups=classes, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.from_numpy(interpolation.bilinear_kernel(8)).expand_as(self.up.weight))

    def forward(self, x):
        return self.up(self.seg(self.base(x)))


@pytest.mark.parametrize("letter, name", [("c", "drn_c_26_seg"), ("d", "drn_d_22_seg")])
def test_the_authors_checkpoints(letter, name, tmp_path):
    torch.manual_seed(0)
    theirs = Segmenter(letter).eval()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, 0, 0.1)
    state = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}  # as nn.DataParallel names it
    torch.save({"epoch": 3, "arch": name, "state_dict": state, "best_prec1": 0.5}, tmp_path / "drn.pth.tar")
    spec, arrays = reading.load_weights(tmp_path / "drn.pth.tar", shared.load(name))
    assert spec["name"] == name and len(arrays) == sum(not key.endswith("num_batches_tracked") for key in state)
    images = np.random.default_rng(0).standard_normal((2, 3, 40, 56))
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(images)).numpy()
    for package in (torch_impl, keras_impl):
        net = package.build(spec, dtype="float64")
        package.load(net, arrays)
        output = package.Engine(net).predict(images)
        assert output.shape == (2, 19, 40, 56)
        assert ladder.relative(expected, output) <= TOLERANCES["activations"]


def test_the_fixed_kernel_interpolates_bilinearly_inside():
    maps = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 5, 6)))
    smooth = torch_impl.layers.Upsample(8)(maps)
    fixed = torch_impl.layers.UpsampleTransposed(3, 8).double()
    fixed.weight.copy_(torch.from_numpy(interpolation.bilinear_kernel(8)).expand_as(fixed.weight))
    same = np.isclose(fixed(maps).numpy(), smooth.numpy(), rtol=1e-13)[0].all(0)
    assert same[4:-4, 4:-4].all() and not same[0].all()


@pytest.mark.parametrize("name, stride", [("resnet18", 32), ("drn_a_18", 8), ("resnet20", 4)])
def test_a_head_for_any_network_with_class_maps(name, stride):
    spec = networks.segmentation(shared.load(name), 11)
    rows = shapes.layers(spec, (64, 96))
    assert spec["name"] == f"{name}_seg" and "segmentation" in spec["title"] and "classes" not in spec
    assert rows[-1].shape == (11, 64, 96) and rows[-2].stride == stride and rows[-1].stride == 1
    assert rows[-1].field == rows[-2].field + stride


def test_weights_of_the_classifier_start_the_segmentation(tmp_path):
    spec = networks.segmentation(shared.load("resnet20"), 11)
    state = weights.initial("resnet20", seed=1)
    weights.save_state(tmp_path / "w.safetensors", state)
    same, arrays = reading.network(spec, classes=11, source=tmp_path / "w.safetensors")
    assert same == spec and arrays.keys() == shapes.weights(shapes.layers(spec)).keys()
    kept = {name for name in state if name in arrays and np.array_equal(arrays[name], state[name])}
    assert kept == state.keys() - {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["vgg16", "drn_d_22_seg"])
def test_a_network_without_class_maps(name):
    with pytest.raises(shared.Error, match=f"{name} has no class maps"):
        networks.segmentation(shared.load(name), 11)


@pytest.mark.parametrize("type_", ["upsample_transposed", pytest.param("upsample", marks=pytest.mark.long)])
def test_exported(type_, tmp_path):
    spec = networks.segmentation(shared.load("drn_a_10_small"), 4)
    up = spec["layers"][-1] | {"type": type_} | ({"in": 4} if type_.endswith("d") else {})
    spec = networks.load(spec | {"layers": [*spec["layers"][:-1], up]})
    paths = [tmp_path / name for name in ("a.onnx", "a.keras", "saved")]
    for row in export.run(spec, weights.randomised(weights.initial(spec)), True, paths):
        assert row.relative <= ladder.TOLERANCES["float32"]["logits"], row


@pytest.mark.long
def test_compared_on_every_rung():
    spec = networks.segmentation(shared.load("resnet20"), 5)
    report = compare.run([torch_impl, keras_impl], spec, steps=3)
    assert report.gradients and report.statistics and len(report.steps) == 3 and report.same_predictions and report.broken == []


def test_the_transposed_kernel_needs_an_even_scale():
    layers = [{"name": "up", "type": "upsample_transposed", "in": 3, "scale": 3}]
    with pytest.raises(shared.Error, match="layer 'up': 'scale' is 3, expected an even number"):
        shared.load({"name": "odd", "input": [3, 8, 8], "layers": layers})

"""Gridding: the number, on maps made up for it; the pictures; the command that draws a layer's strongest map."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

import keras_impl
import shared
import torch_impl
from shared import images, networks, weights
from twins import backends, plots
from twins import gridding as measure

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gridding as benchmark

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PACKAGES = {"torch": torch_impl, "tf": keras_impl}
DRN = "drn_a_10_small"


def noise(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((height, width))


def grid(height, width, period, seed=0):
    """A map that repeats a random tile."""
    tile = noise(period, period, seed)
    return np.tile(tile, (height // period + 1, width // period + 1))[:height, :width]


def bump(side):
    distances = np.linspace(-2, 2, side) ** 2
    return np.exp(-(distances[:, None] + distances))


def folded(values, period):
    """The share by the mean of each lattice, without a Fourier transform."""
    height, width = (side // period for side in values.shape)
    tiles = values[: height * period, : width * period].reshape(height, period, width, period)
    return tiles.mean((0, 2)).var() / tiles.var()


@pytest.mark.parametrize("period", [2, 3, 4, 7])
@pytest.mark.parametrize("size", [(28, 28), (31, 45), (8, 64)])
def test_a_pure_grid_is_all_grid(size, period):
    values = 5 + grid(*size, period)
    assert measure.gridding(values, period) == pytest.approx(1, abs=1e-12)
    ramp = values.std() * np.linspace(-2, 2, size[1])  # its variance is about 4/3 of the grid's
    assert measure.gridding(values + ramp, period) == pytest.approx(3 / 7, abs=0.08)
    assert measure.gridding(7 * values - 3, period) == pytest.approx(1, abs=1e-12)


def test_stripes_along_either_axis_are_a_grid():
    stripes = np.tile([0.0, 1.0, 0.0, 0.0], (12, 5))
    assert measure.gridding(stripes, 4) == measure.gridding(stripes.T, 4) == pytest.approx(1, abs=1e-12)


def test_a_grid_of_another_period_is_none():
    assert measure.gridding(grid(60, 60, 5), 4) == pytest.approx(0, abs=1e-12)
    assert measure.gridding(grid(60, 60, 2), 4) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [0, 1, -3.7, 1e30, 1e-30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_map_has_no_grid(value, dtype):
    values = np.full((13, 16), value, dtype)
    assert measure.gridding(values, 4) == 0
    checks = np.indices(values.shape).sum(0) % 2
    assert measure.gridding(values * (1 + 1e-7 * checks).astype(dtype), 2) == 0  # rounding in float32
    assert measure.gridding(values * (1 + 1e-3 * checks).astype(dtype), 2) == pytest.approx(float(value != 0), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_is_none_of_its_business(scale):
    assert measure.gridding(scale * noise(20, 20), 4) == pytest.approx(measure.gridding(noise(20, 20), 4), rel=1e-12)


@pytest.mark.parametrize("size, period", [((28, 28), 4), ((16, 40), 2), ((30, 30), 5)])
def test_noise_has_the_share_of_its_frequencies(size, period):
    shares = [measure.gridding(noise(*size, seed), period) for seed in range(200)]
    expected = (period**2 - 1) / (size[0] * size[1] - 1)
    assert np.mean(shares) == pytest.approx(expected, rel=0.15) and max(shares) < 12 * expected


def test_a_smooth_map_has_almost_none():
    assert measure.gridding(bump(28), 4) < 1e-3
    assert measure.gridding(bump(28), 2) < 1e-4


@pytest.mark.parametrize("period", [2, 4, 5])
def test_the_number_is_the_variance_of_the_lattices_means(period):
    for values in (noise(21, 34), bump(29), noise(24, 24) + grid(24, 24, period), np.maximum(noise(20, 20), 0)):
        assert measure.gridding(values, period) == pytest.approx(folded(values, period), rel=1e-9, abs=1e-14)
        assert measure.gridding(values.astype("float32"), period) == pytest.approx(folded(values, period), rel=1e-4, abs=1e-7)


def test_a_grid_in_half_of_a_flat_map_counts_half():
    values = grid(32, 32, 4) - grid(4, 4, 4).mean()
    values[:, 16:] = 0
    assert measure.gridding(values, 4) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    "size, period, words",
    [
        ((3, 8), 4, "a map of 3x8 is smaller than the period of the grid, 4"),
        ((8, 1), 2, "a map of 8x1 is smaller than the period of the grid, 2"),
        ((8, 8), 1, "the period is 1, expected a whole number of at least 2"),
        ((8, 8), 2.0, "the period is 2.0, expected a whole number of at least 2"),
        ((8, 8), -4, "the period is -4, expected a whole number of at least 2"),
    ],
)
def test_a_number_that_would_say_nothing_is_refused(size, period, words):
    with pytest.raises(shared.Error, match=f"^{re.escape(words)}$"):
        measure.gridding(noise(*size), period)


def test_the_strongest_map_has_the_highest_mean():
    output = np.stack([noise(5, 6), 0.5 + np.zeros((5, 6)), noise(5, 6, 1)])
    output[0, 0, 0] = 14  # a peak is no mean
    channel, values = measure.strongest(output)
    assert channel == 1 and np.array_equal(values, output[1])
    assert measure.strongest(-output)[0] != 1
    near = np.zeros((224, 224, 2), np.float32)  # the channels last, where a sum in float32 is coarse
    near[..., 0], near[0, :, 1] = 3333.33, 224 * 3333.3
    assert measure.strongest(np.moveaxis(near, -1, 0))[0] == 0


@pytest.mark.parametrize("name, dilation", [("drn_a_18", 4), ("drn_b_26", 4), ("drn_c_26", 4), ("drn_b_18_small", 4)])
def test_the_period_is_the_largest_dilation(name, dilation):
    assert measure.grid_period(shared.load(name), networks.head(shared.load(name))[0][-1]) == dilation


def test_the_period_is_of_what_lies_before_a_layer():
    spec = shared.load("drn_a_18")
    assert [measure.grid_period(spec, layer) for layer in ("layer3.0", "layer4.0", "layer4.1")] == [2, 4, 4]


def test_without_dilation_there_is_no_period():
    for name, layer in (("resnet20", "layer3.2"), ("drn_c_26", "layer4.1")):
        with pytest.raises(shared.Error, match=f"^{name} has no dilation above 1 up to '{layer}'$"):
            measure.grid_period(shared.load(name), layer)


@pytest.mark.parametrize(
    "network, name, full",
    [
        ("drn_a_18", "layer1", "layer1.1"), ("drn_a_18", "layer1.0", "layer1.0"), ("drn_a_18", "conv1", "conv1"),
        ("drn_b_18_small", "layer8", "layer8"), ("vgg11", "features", "features.20"), ("resnet50_v1", "layer4", "layer4.2"),
    ],
)  # fmt: skip
def test_a_group_is_its_last_member(network, name, full):
    assert measure.layer_name(name, shared.load(network)) == full


class Engine:
    """An engine whose one layer gives this output, the channels last."""

    framework = "Keras"
    channels_first = staticmethod(keras_impl.Engine.channels_first)

    def __init__(self, output):
        self.output = output

    def activations(self, images):
        return {"layer": self.output}


def test_an_output_that_is_not_finite_is_refused():
    output = noise(6, 8).reshape(1, 2, 8, 3)
    assert measure.strongest_map(Engine(output), None, "layer")[1].shape == (2, 8)
    for value in (np.nan, np.inf):
        output[0, 1, 1, 1] = value
        with pytest.raises(shared.Error, match="Keras: layer 'layer' returns non-finite values"):
            measure.strongest_map(Engine(output), None, "layer")


def test_drawn_maps_are_not_blurred(tmp_path):
    checks = np.indices((6, 6)).sum(0) % 2
    red, grey = np.full((6, 6, 3), (200, 10, 10), np.uint8), np.full((6, 6, 1), 77, np.uint8)
    plots.draw_panels([("$", red), ("", grey), ("map", 3.0 * checks - 1)], tmp_path / "p.png", "$ title")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    plots.draw_panels([("", red), ("", grey), ("", 3.0 * checks - 1)], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    ends = [[round(255 * part) for part in colormaps["viridis"](end)[:3]] for end in (0.0, 1.0)]
    shares = [(abs(pixels - np.array(colour)).max(1) <= 1).mean() for colour in ([200, 10, 10], [77] * 3, *ends)]
    assert min(shares[:2]) > 0.2 and min(shares[2:]) > 0.1
    assert shares[0] == pytest.approx(sum(shares[2:]), rel=0.05)
    assert pixels.max(1).min() > 70  # no axes in black


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a picture, and the weights of two networks."""
    folder = tmp_path_factory.mktemp("gridding")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    Image.fromarray(pixels).resize((150, 120), Image.Resampling.BICUBIC).save(folder / "a.png")
    weights.save_state(folder / "w.safetensors", weights.randomised(weights.initial(DRN, seed=1)))
    broken = weights.initial(DRN)
    broken["conv1.weight"][0, 0, 0, 0] = np.nan
    weights.save_state(folder / "nan.safetensors", broken)
    weights.save_state(folder / "lenet.safetensors", weights.initial("lenet"))
    (folder / "text.png").write_text("no picture")
    conv = {"name": "conv", "type": "conv", "in": 4, "out": 2, "kernel": 3, "dilation": 4, "padding": 4}
    pool = {"name": "pool", "type": "max_pool", "kernel": 2}
    for name, channels in (("four", 4), ("tiny", 1)):
        spec = {"name": name, "input": [channels, 4, 6], "layers": [conv | {"in": channels}, pool]}
        (folder / f"{name}.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture
def activations(twins, files):
    """`twins activations` in that folder."""
    return lambda arguments: twins(f"activations {arguments}", folder=files)


def strongest(name, state, layer, path):
    """(channel, map, picture) by PyTorch's own means."""
    spec = shared.load(name)
    net = torch_impl.build(spec).eval()
    torch_impl.load(net, state)
    pixels = images.pixels([images.read_picture(path)], spec)
    batch = torch_impl.engine.torch.from_numpy(images.normalise(pixels, spec))
    output = net.activations(batch)[layer][0].detach().numpy()
    channel = max(range(len(output)), key=lambda number: output[number].sum())
    return channel, output[channel], pixels[0]


@pytest.mark.parametrize("given", ["--weights w.safetensors", ""])
def test_the_command_in_either_framework(given, activations, files, monkeypatch):
    state = weights.read_state(files / "w.safetensors") if given else weights.initial(DRN)
    channel, values, picture = strongest(DRN, state, "layer4", files / "a.png")
    drawn, draw = [], plots.draw_panels
    monkeypatch.setattr(plots, "draw_panels", lambda panels, *rest: (drawn.append(panels), draw(panels, *rest)))
    for backend, package in PACKAGES.items():
        status, out, err = activations(f"{DRN} a.png --layer layer4 --out {backend}.png --backend {backend} {given}")
        assert (status, err) == (0, "")
        assert out == (
            f"{DRN}{'' if given else ', untrained'}: layer4 in {package.Engine.framework}: channel {channel}, a map of 8x8, "
            f"mean {values.mean():.4g}; gridding {folded(values.astype('float64'), 4):.3f} at period 4.\n"
        )
        (_, shown), (title, map_) = drawn.pop()
        report = json.loads(activations(f"{DRN} a.png --layer layer4 --out j.png --backend {backend} {given} --json").stdout)
        assert (report["layer"], report["channel"], report["shape"], report["period"]) == ("layer4", channel, [8, 8], 4)
        assert report["framework"] == package.Engine.framework and report["mean"] == pytest.approx(values.mean(), rel=1e-4)
        assert report["gridding"] == pytest.approx(folded(values.astype("float64"), 4), rel=1e-3) and drawn.pop()
        assert np.array_equal(shown, picture) and np.allclose(map_, values, rtol=1e-4) and f"channel {channel}" in title
        with Image.open(files / f"{backend}.png") as image:
            assert image.format == "PNG" and image.width > 1.5 * image.height > 400


@pytest.mark.parametrize(
    "network, layer, size, why",
    [
        ("lenet", "conv2", "10x10", "lenet has no dilation above 1 up to 'conv2'"),
        ("tiny.json", "pool", "2x3", "a map of 2x3 is smaller than the period of the grid, 4"),
    ],
)
def test_without_a_number_the_line_says_why(network, layer, size, why, activations, files):
    status, out, err = activations(f"{network} a.png --layer {layer} --out {layer}.pdf")
    assert (status, err) == (0, "") and (files / f"{layer}.pdf").read_bytes().startswith(b"%PDF")
    beginning = rf"{Path(network).stem}, untrained: {layer} in PyTorch: channel \d+, a map of {size}, mean [-\d.e]+; "
    assert re.fullmatch(rf"{beginning}no gridding number: {why}\.\n", out)


MISTAKES = {
    "unknown network": ("drn_a_19 a.png --layer layer4", "no network is called 'drn_a_19', did you mean 'drn_a_18'?"),
    "unknown layer": (f"{DRN} a.png --layer layer5", f"{DRN} has no layer 'layer5', did you mean 'layer4'?"),
    "far from any layer": (f"{DRN} a.png --layer zzz", f"{DRN} has no layer 'zzz'; `twins show {DRN}` lists them"),
    "a vector": (f"{DRN} a.png --layer fc", f"layer 'fc' of {DRN} returns 10, expected one that returns maps"),
    "a pooled map": (
        f"{DRN} a.png --layer avgpool",
        f"layer 'avgpool' of {DRN} returns 128x1x1, expected one that returns maps",
    ),
    "both": (
        f"{DRN} a.png --layer layer4 --backend both",
        "--backend both: the figure is of one framework; expected torch, tf, jax or keras-torch",
    ),
    "no picture": (f"{DRN} no.png --layer layer4", "no.png: there is no such file"),
    "a folder": (f"{DRN} . --layer layer4", ".: is a folder; pass its files"),
    "not an image": (f"{DRN} text.png --layer layer4", "text.png: not an image"),
    "wrong ending": (f"{DRN} a.png --layer layer4 --out a.jpg", "a.jpg: expected a file ending in .png, .pdf, .svg"),
    "no such folder": (f"{DRN} a.png --layer layer4 --out no/a.png", "no/a.png: there is no folder no"),
    "over the image": (f"{DRN} a.png --layer layer4 --out ../{{folder}}/a.png", "this is the image itself; expected another"),
    "four channels": ("four.json a.png --layer conv", "the network takes 4 channels; the images have 1 or 3"),
    "no such weights": (f"{DRN} a.png --layer layer4 --weights v.safetensors", "v.safetensors: there is no such file"),
    "others' weights": (f"{DRN} a.png --layer layer4 --weights lenet.safetensors", "lenet.safetensors: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_before_any_work(mistake, activations, files, monkeypatch):
    arguments, words = MISTAKES[mistake]
    before = (files / "a.png").read_bytes()
    monkeypatch.setattr(backends, "start", lambda backend: pytest.fail("a framework was started"))
    out = "" if "--out" in arguments else " --out never.png"
    status, out, err = activations(arguments.format(folder=files.name) + out)
    assert (status, out) == (2, "") and err.startswith("twins: ") and words in err and err.count("twins: ") == 1
    assert (files / "a.png").read_bytes() == before and not (files / "never.png").exists()


def test_weights_that_give_no_numbers(activations, files):
    status, out, err = activations(f"{DRN} a.png --layer layer4 --weights nan.safetensors --out never.png")
    assert (status, out) == (2, "") and not (files / "never.png").exists()
    assert err == "twins: nan.safetensors: conv1.weight has NaN or infinite values\n"


def test_networks_side_by_side(files, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plots, "draw_panels", lambda panels, path: drawn.extend(panels))
    names = [DRN, "drn_c_18_small", "resnet10_small"]
    benchmark.main(files / "a.png", tmp_path / "f.png", names)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["network", "layer", "channel", "map"] and drawn[0][0] == "a.png"
    layers = ("layer4", "layer8", "layer4")
    assert [line[:3] for line in lines[1:]] == [[f"{n},", "untrained", layer] for n, layer in zip(names, layers, strict=True)]
    for name, line, (title, values) in zip(names, lines[1:3], drawn[1:], strict=False):
        share = f"{folded(values.astype('float64'), 4):.3f}"
        described = f"gridding {share} at period 4"
        channel = strongest(name, weights.initial(name), line[2], files / "a.png")[0]
        assert line[3:] == [f"{channel}", "8x8", *described.split()] and title == f"{name}, untrained, {line[2]}\n{described}"
    described = "no gridding number: resnet10_small has no dilation above 1 up to 'layer4'"
    assert " ".join(lines[3][4:]) == f"2x2 {described}" and drawn[3][0] == f"resnet10_small, untrained, layer4\n{described}"

    given = [f"{files / 'w.safetensors'}"] * 2
    benchmark.main(files / "a.png", tmp_path / "f.png", [DRN, DRN], given, "layer3")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    channel, values, _ = strongest(DRN, weights.read_state(given[0]), "layer3", files / "a.png")
    described = f"gridding {folded(values.astype('float64'), 2):.3f} at period 2"
    assert rows == [[DRN, "layer3", f"{channel}", "8x8", *described.split()]] * 2


@pytest.mark.parametrize(
    "names, given, layer, words",
    [
        (None, ["a", "b"], None, "there are 3 networks and 2 --weights, expected one for each or none"),
        (["drn_a_18", "lenet"], None, "layer4", "lenet has no layer 'layer4'"),
    ],
)
def test_mistakes_of_the_benchmark(names, given, layer, words, files, tmp_path):
    with pytest.raises(shared.Error, match=words):
        benchmark.main(files / "a.png", tmp_path / "f.png", names, given, layer)


def test_a_mistake_in_the_benchmarks_command(files, tmp_path):
    command = [sys.executable, BENCHMARKS / "gridding.py", files / "a.png", "--out", tmp_path / "f.png", "--network", "vgg11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("gridding.py: vgg11 has no class maps")
    assert done.stderr.endswith("; --layer says which maps to draw of such a network\n") and done.stderr.count("\n") == 1


def test_the_default_layers_are_those_before_the_pooling():
    specs = [shared.load(name) for name in benchmark.NETWORKS]
    assert [benchmark.last_map(spec) for spec in specs] == ["layer4.1", "layer8.0", "layer8.0"]
    assert {measure.grid_period(spec, benchmark.last_map(spec)) for spec in specs} == {4}

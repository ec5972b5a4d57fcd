"""What images become before a network sees them, and the command that predicts their classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import keras_impl
import shared
import torch_impl
from shared import images, networks, reading, weights
from twins import backends, predict

PACKAGES = {"torch": [torch_impl], "tf": [keras_impl], "both": [torch_impl, keras_impl]}
IMAGENET = {"channels": "RGB", "scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
REAL = pytest.mark.skipif("TWINS_DATA" not in os.environ, reason="TWINS_DATA names no folder with weights and photographs")


def small(preprocessing=None, **changes):
    """The spec of a network that takes images of any size, for CIFAR-10's classes."""
    layers = [
        {"name": "conv", "type": "conv", "in": 3, "out": 8, "kernel": 3, "stride": 2},
        {"name": "relu", "type": "relu"},
        {"name": "mean", "type": "global_avg_pool"},
        {"name": "flat", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 10},
    ]
    spec = {"name": "small", "input": [3, 16, 20], "classes": "cifar10", "layers": layers}
    return spec | {"preprocessing": IMAGENET | (preprocessing or {})} | changes


def noise(height, width, channels=3, seed=0):
    """Smooth enough that pixels in other places have other values, not so smooth that they have almost the same."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, channels), np.uint8)
    image = Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


@pytest.mark.parametrize("size", [(37, 53), (301, 200), (255, 257), (16, 90), (224, 224)])
@pytest.mark.parametrize("resize, crop", [(256, 224), (33, 32), (33, 28), (33, None)])
def test_images_are_torchvisions(size, resize, crop):
    image = noise(*size)
    cut = [transforms.CenterCrop(crop)] if crop else []
    values = [transforms.ToTensor(), transforms.Normalize(IMAGENET["mean"], IMAGENET["std"])]
    theirs = transforms.Compose([transforms.Resize(resize), *cut, *values])(Image.fromarray(image)).numpy()
    ours = images.preprocess([image], small({"resize": resize} | ({"crop": crop} if crop else {})))
    assert ours.dtype == np.float32 and np.array_equal(ours[0], theirs)


@pytest.mark.parametrize("size", [(31, 47), (20, 16)])
def test_without_resize_and_crop_images_get_the_networks_size(size):
    image = noise(*size)
    ours = images.preprocess([image, image], small({"mean": [0, 0, 0], "std": [1, 1, 1]}))
    theirs = transforms.ToTensor()(transforms.Resize((16, 20))(Image.fromarray(image))).numpy()
    assert np.array_equal(ours, [theirs, theirs])


def test_values_are_in_the_order_of_the_channels():
    image = np.full((16, 20, 3), (10, 20, 30), np.uint8)
    batch = images.preprocess([image], small({"channels": "BGR", "scale": 2, "mean": [1, 2, 3], "std": [2, 1, 4]}), "float64")
    assert batch.dtype == np.float64 and batch[0, :, 3, 3].tolist() == [(15 - 1) / 2, (10 - 2) / 1, (5 - 3) / 4]


def test_grey_becomes_colour_and_colour_grey():
    grey = noise(16, 20, 1)
    batch = images.preprocess([grey], small({"scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}))
    assert all(np.array_equal(channel, grey[..., 0]) for channel in batch[0])
    spec = {"input": [1, 16, 20], "preprocessing": {"channels": "L", "scale": 256, "mean": [0], "std": [1]}}
    assert np.array_equal(images.preprocess([grey], spec)[0, 0], grey[..., 0] / np.float32(256))
    red = np.full((16, 20, 3), (255, 0, 0), np.uint8)
    assert images.preprocess([red], spec)[0, 0, 0, 0] == np.float32(76 / 256)  # 0.299 of 255


def test_a_spec_that_says_nothing_wants_one_around_zero():
    image = noise(28, 28, 1)
    assert np.array_equal(
        images.preprocess([image], shared.load("mnist_residual"))[0, 0], image[..., 0] / np.float32(127.5) - 1
    )


def rotated(path):
    # A camera held on its side: 6 says that the first row of the file is the right edge of the picture.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(path, exif=exif)
    return np.rot90(noise(20, 30), -1)


def transparent(mode):
    def save(path):
        pixels = np.zeros((6, 5, 4), np.uint8)
        pixels[:3] = (200, 0, 0, 255)
        pixels[5, :, 3] = 51
        image = Image.fromarray(pixels).convert(mode)
        image.save(path)
        colour = np.array([200, 0, 0] if mode == "RGBA" else [60, 60, 60])
        rows = [colour] * 3 + [np.full(3, 255)] * 2 + [np.full(3, 204)]
        return np.repeat(np.array(rows, np.uint8)[:, None], 5, axis=1)

    return save


def palette(path):
    image = Image.new("P", (5, 6))
    image.putpalette([9, 8, 7, 1, 2, 3])
    image.putpixel((2, 1), 1)
    image.save(path, transparency=0)
    expected = np.full((6, 5, 3), 255)
    expected[1, 2] = (1, 2, 3)
    return expected


def sixteen_bits(path):
    Image.fromarray(np.full((6, 5), 0x1234, np.uint16)).save(path)
    return np.full((6, 5, 3), 0x12)


def grey(path):
    Image.fromarray(noise(6, 5, 1)[..., 0]).save(path)
    return noise(6, 5, 1).repeat(3, axis=2)


def cmyk(path):
    Image.new("CMYK", (5, 6), (0, 255, 255, 51)).save(path, compression="raw")
    return np.full((6, 5, 3), (204, 0, 0))


def film(path):
    frames = [Image.new("RGB", (5, 6), colour) for colour in ("red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return np.full((6, 5, 3), (255, 0, 0))


PICTURES = {
    "rotated.png": rotated, "alpha.png": transparent("RGBA"), "grey_alpha.png": transparent("LA"), "palette.png": palette,
    "sixteen_bits.png": sixteen_bits, "grey.png": grey, "cmyk.tif": cmyk, "film.gif": film,
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_all_kinds(name, tmp_path):
    expected = PICTURES[name](tmp_path / name)
    found = images.read_picture(tmp_path / name)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_pictures_of_32_bits_have_no_white(tmp_path):
    Image.fromarray(np.zeros((6, 5), np.float32)).save(tmp_path / "p.tif")
    with pytest.raises(shared.Error, match="p.tif: .* its pixels have 32 bits"):
        images.read_picture(tmp_path / "p.tif")


SPECS = {
    "an unknown key": ({"sclae": 1}, "preprocessing: unknown key 'sclae', did you mean 'scale'?"),
    "other channels": ({"channels": "RBG"}, 'preprocessing: \'channels\' is "RBG", expected one of "RGB", "BGR", "L"'),
    "too few channels": ({"channels": "L"}, "preprocessing: 'channels' is \"L\", but the input has 3"),
    "too few means": ({"mean": [0.5]}, "preprocessing: 'mean' is [0.5], but the input has 3"),
    "no deviation": ({"std": [1, 0, 1]}, "preprocessing: 'std' is [1, 0, 1], expected a list of numbers above 0"),
    "no number": ({"mean": [0, float("nan"), 0]}, "preprocessing: 'mean' is [0, NaN, 0], expected a list of numbers"),
    "no scale": ({"scale": float("inf")}, "preprocessing: 'scale' is Infinity, expected a number above 0"),
    "no size": ({"resize": 0}, "preprocessing: 'resize' is 0, expected a whole number of at least 1"),
    "a crop of nothing": ({"crop": 8}, "preprocessing: 'crop' is 8, which needs a 'resize'"),
    "a crop of too little": ({"resize": 7, "crop": 8}, "preprocessing: 'crop' is 8, which must not exceed 'resize', 7"),
    "a crop for another network": (
        {"resize": 8, "crop": 2},
        "preprocessing: 'crop' is 2, which the network does not take: layer 'conv': the image is too small",
    ),
}


@pytest.mark.parametrize("mistake", SPECS)
def test_a_mistake_in_a_spec(mistake):
    changes, words = SPECS[mistake]
    with pytest.raises(shared.Error) as error:
        shared.load(small(changes))
    assert words in str(error.value)


def test_a_spec_with_other_classes():
    with pytest.raises(shared.Error, match="'classes' is \"imagnet\", did you mean 'imagenet'"):
        shared.load(small(classes="imagnet"))
    with pytest.raises(shared.Error, match="'classes' is \"imagenet\", which has 1000 names, but the network has 10 outputs"):
        shared.load(small(classes="imagenet"))


def test_names_of_classes():
    names = networks.class_names({"classes": "imagenet"})
    assert len(names) == 1000 and names[0] == "tench, Tinca tinca" and names[104].startswith("wallaby")
    assert networks.class_names(shared.load("mnist_residual")) is None


class Fake:
    """An engine whose logits are the pixels of the image."""

    framework = "Fake"
    rank, processes = 0, 1

    def __init__(self, change=lambda logits: logits):
        self.change = change

    def predict(self, images):
        return self.change(images[:, 0].reshape(len(images), -1))


PIXELS = {"name": "pixels", "input": [1, 2, 4], "layers": [{"name": "flat", "type": "flatten"}]}


def save_pixels(path, *values):
    Image.fromarray(np.array(values, np.uint8).reshape(2, 4)).save(path)
    return path


def test_the_top_five_of_two_that_disagree(tmp_path):
    path = save_pixels(tmp_path / "p.png", 0, 10, 20, 30, 40, 50, 60, 70)
    same, other = predict.classify_pictures([Fake(), Fake()], PIXELS, [path]), Fake(lambda logits: logits[:, ::-1].copy())
    assert same[0]["same_top"] and same[0]["difference"] == 0
    assert [row["class"] for row in same[0]["top"]] == [7, 6, 5, 4, 3]
    found = predict.classify_pictures([Fake(), other], PIXELS, [path])[0]
    assert not found["same_top"]
    assert [row["class"] for row in found["top"]] == [7, 6, 5, 4, 3, 0, 1, 2]
    logits = np.arange(0, 80, 10) / 127.5 - 1
    expected = np.exp(logits) / np.exp(logits).sum()
    for row in found["top"]:
        assert row["probabilities"] == pytest.approx([expected[row["class"]], expected[7 - row["class"]]], rel=1e-6)
    assert found["difference"] == pytest.approx(np.linalg.norm(logits - logits[::-1]) / np.linalg.norm(logits), rel=1e-6)


def test_accuracy_of_two_that_disagree():
    images = np.eye(8, dtype=np.uint8)[:6].reshape(6, 2, 4, 1) * 255
    labels = np.array([0, 1, 2, 3, 7, 7])
    other, seen = Fake(lambda logits: logits[:, [0, 1, 2, 4, 3, 5, 6, 7]]), []
    found = predict.evaluate([Fake(), other], PIXELS, images, labels, seen.append).summary(["one", "other"])
    assert found.pop("top1") == {"one": 4 / 6, "other": 3 / 6} and sum(seen) == 6
    assert found == {"tested": 6, "top5": {"one": 4 / 6, "other": 4 / 6}, "same_predictions": 4}
    alone = predict.evaluate([Fake()], PIXELS, images, labels)
    assert alone.summary(["one"]) == {"tested": 6, "top1": {"one": 4 / 6}, "top5": {"one": 4 / 6}}
    values = np.eye(8)[:6] * 2
    expected = (np.exp(values) / np.exp(values).sum(1, keepdims=True)).max(1)
    assert np.allclose(alone.probabilities[0], expected, rtol=1e-6, atol=0) and alone.places.tolist() == [*range(6)]


def test_logits_that_are_no_numbers(tmp_path):
    path = save_pixels(tmp_path / "p.png", *range(8))
    with pytest.raises(shared.Error, match="Fake: non-finite logits"):
        predict.classify_pictures([Fake(lambda logits: logits * np.float32("nan"))], PIXELS, [path])


def test_pictures_of_many_sizes_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "batch_size", lambda spec: 2)
    spec = small({"resize": 12})
    engines = backends.engines([torch_impl], spec, weights.initial(spec))
    sizes = [(12, 30), (30, 12), (12, 30), (12, 30), (2, 20), (30, 12), (30, 12)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(noise(*size, seed=number)).save(path)
    seen, counts = [], []
    found = predict.classify_pictures([Counting(engines[0], counts)], spec, paths, seen.append)
    assert [row["image"] for row in found] == [str(path) for path in paths]
    assert sorted(counts) == [1, 1, 1, 2, 2] and sum(seen) == len(paths)
    for path, row in zip(paths, found, strict=True):
        alone = predict.classify_pictures(engines, spec, [path])[0]
        assert [top["class"] for top in row["top"]] == [top["class"] for top in alone["top"]]
        assert row["top"][0]["probabilities"] == pytest.approx(alone["top"][0]["probabilities"], rel=1e-5)


class Counting:
    """An engine that notes how many images come at once."""

    def __init__(self, engine, counts):
        self.engine, self.counts, self.framework = engine, counts, engine.framework

    def predict(self, images):
        self.counts.append(len(images))
        return self.engine.predict(images)


def test_a_picture_of_a_shape_that_the_network_does_not_take(tmp_path):
    wanted = {"resize": 4, "channels": "L", "scale": 1, "mean": [0], "std": [1]}
    layers = [{"name": "flat", "type": "flatten"}, {"name": "fc", "type": "linear", "in": 16, "out": 2}]
    spec = shared.load({"name": "mine", "input": [1, 4, 4], "preprocessing": wanted, "layers": layers})
    square, wide = tmp_path / "square.png", tmp_path / "wide.png"
    Image.new("L", (9, 9)).save(square)
    Image.new("L", (18, 9)).save(wide)
    found = predict.classify_pictures(backends.engines([torch_impl], spec, weights.initial(spec)), spec, [wide, square])
    assert "wide.png: layer 'fc': " in found[0]["error"] and len(found[1]["top"]) == 2


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a spec, its weights, pictures and data sets; the working directory."""
    spec = small({"resize": 24, "crop": 20})
    (tmp_path / "small.json").write_text(json.dumps(spec))
    state = weights.initial(spec, seed=3)
    state["fc.weight"] *= 30  # so that classes differ
    weights.save_state(tmp_path / "w.safetensors", state)
    weights.save_state(tmp_path / "other.safetensors", weights.initial("mnist_residual"))
    Image.fromarray(noise(40, 50)).save(tmp_path / "a.png")
    Image.fromarray(noise(70, 30, seed=1)).save(tmp_path / "b.jpg")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-200])
    (tmp_path / "folder").mkdir()
    images = np.stack([noise(33, 33, seed=number) for number in range(8)])
    logits = torch_logits(spec, state, images)
    labels = logits.argmax(1)
    labels[6:] = (labels[6:] + 1) % 10
    for name, changes in {"mine": {}, "grey": {"x_test": images[..., :1]}, "many": {"y_test": labels + 10}}.items():
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changes
        np.savez(tmp_path / f"{name}.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def torch_logits(spec, state, x):
    net = torch_impl.build(spec).eval()
    torch_impl.load(net, state)
    with torch.no_grad():
        return net(torch.from_numpy(images.preprocess(x, spec))).numpy()


@pytest.mark.parametrize("backend", PACKAGES)
def test_pictures(backend, twins, files):
    options = f"--weights w.safetensors --backend {backend} --json"
    status, out, err = twins(f"predict small.json a.png b.jpg {options}")
    assert status == 0 and err == ""
    found = json.loads(out)
    count = len(PACKAGES[backend])
    assert found["network"] == "small" and found["weights"] == "w.safetensors"
    assert found["frameworks"] == [package.Engine.framework for package in PACKAGES[backend]]
    assert [row["image"] for row in found["images"]] == ["a.png", "b.jpg"]
    spec = shared.load("small.json")
    pixels = [images.read_picture(files / name) for name in ("a.png", "b.jpg")]
    for image, row in zip(pixels, found["images"], strict=True):
        logits = torch_logits(spec, weights.read_state(files / "w.safetensors"), [image])[0].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum()
        assert [top["class"] for top in row["top"]] == np.argsort(-expected)[:5].tolist()
        for top in row["top"]:
            assert top["name"] == networks.class_names(spec)[top["class"]]
            assert top["probabilities"] == pytest.approx([expected[top["class"]]] * count, rel=1e-4)
        assert ("same_top" in row) == ("difference" in row) == (count == 2)
        assert row.get("same_top", True) and row.get("difference", 0) < 1e-5


def test_pictures_as_tables(twins, files):
    arguments = "predict small.json a.png b.jpg --weights w.safetensors --backend both"
    status, out, _ = twins(arguments)
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "a.png" and lines[1] == "class label PyTorch Keras"
    number, name, ours, theirs = lines[2].split()
    assert networks.class_names({"classes": "cifar10"})[int(number)] == name and ours == theirs and ours.endswith("%")
    assert lines[7].startswith("The same top classes in both; logits ") and lines[9] == "b.jpg"
    assert lines[-1].startswith("2 pictures: the same top classes for 2, logits at most ")
    _, out, _ = twins("predict small.json a.png --weights w.safetensors")
    assert out.splitlines()[1].split() == ["class", "label", "PyTorch"] and "both" not in out


def test_files_that_are_no_pictures_are_said_in_their_place(twins, files):
    arguments = "predict small.json text.png a.png cut.jpg b.jpg --weights w.safetensors"
    status, out, err = twins(arguments)
    assert status == 2 and err == ""
    places = [out.index(words) for words in ("text.png: not an image", "a.png\n", "cut.jpg: not an image", "b.jpg\n")]
    assert places == sorted(places) and out.endswith("2 of 4 files could not be read.\n")
    status, out, _ = twins(f"{arguments} --json")
    assert status == 2
    assert [sorted(row) for row in json.loads(out)["images"]] == [["error", "image"], ["image", "top"]] * 2


@pytest.mark.parametrize("backend", PACKAGES)
def test_data(backend, twins, files):
    arguments = f"predict small.json --weights w.safetensors --data mine.npz --backend {backend}"
    status, out, err = twins(f"{arguments} --json")
    assert status == 0 and err == ""
    found = json.loads(out)
    assert found["tested"] == 8 and found["top1"] == dict.fromkeys(found["frameworks"], 0.75) and found["data"] == "mine.npz"
    assert len(found["frameworks"]) == len(PACKAGES[backend]) and found["top5"].keys() == found["top1"].keys()
    assert found.get("same_predictions") == (8 if backend == "both" else None)


def test_data_in_words(twins, files):
    _, out, _ = twins("predict small.json --weights w.safetensors --data mine.npz --backend both")
    assert out == (
        "small on mine.npz, accuracy on 8 test images: PyTorch 75.00%, Keras 75.00%.\nThe same prediction for all of them.\n"
        "The data set has 6 classes, the network 10: their numbers may mean different classes.\n"
    )


MISTAKES = {
    "unknown network": ("resnet21 a.png --weights w.safetensors", "no network is called 'resnet21', did you mean"),
    "no weights": ("small.json a.png", "--weights is missing: an untrained network predicts nothing"),
    "no such weights": ("small.json a.png --weights v.safetensors", "v.safetensors: there is no such file"),
    "weights of another network": ("small.json a.png --weights other.safetensors", "other.safetensors: "),
    "nothing to predict": ("small.json --weights w.safetensors", "pass pictures, or a data set with --data"),
    "too much to predict": (
        "small.json a.png --data digits --weights w.safetensors",
        "pass either pictures or --data",
    ),
    "no such picture": (
        "small.json a.png no.png none.png --weights w.safetensors",
        "no.png: there is no such file, nor none.png",
    ),
    "a folder": (
        "small.json a.png folder --weights w.safetensors",
        "folder: is a folder; pass its files, for example folder/*.jpg",
    ),
    "unknown data": ("small.json --data digit --weights w.safetensors", "no data set is called 'digit', did you mean 'digits'"),
    "grey data": ("small.json --data grey.npz --weights w.safetensors", "grey.npz: its images are grey, small expects colour"),
    "more classes": ("small.json --data many.npz --weights w.safetensors", "many.npz: its labels go up to 1"),
    "a network without classes": ("drn.json a.png --weights w.safetensors", "drn ends in a map of 10x8x10, not in a vector"),
    "a network of four channels": ("four.json a.png --weights w.safetensors", "four takes 4 channels, pictures have 1 or 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_before_any_work(mistake, twins, files, monkeypatch):
    conv = {"name": "conv", "type": "conv", "in": 3, "out": 10, "kernel": 1, "stride": 2}
    (files / "drn.json").write_text(json.dumps({"name": "drn", "input": [3, 16, 20], "layers": [conv]}))
    flat = {"name": "flat", "type": "flatten"}
    (files / "four.json").write_text(json.dumps({"name": "four", "input": [4, 1, 1], "layers": [flat]}))
    arguments, words = MISTAKES[mistake]
    monkeypatch.setattr(backends, "start", lambda backend: pytest.fail("the frameworks were started"))
    status, out, err = twins(f"predict {arguments}")
    assert status == 2 and out == "" and err.startswith("twins: ") and words in err


@pytest.mark.parametrize("backend, imported", [("torch", ["torch"]), ("tf", ["tensorflow"])])
def test_one_backend_starts_one_framework(backend, imported, files):
    code = (
        "import sys; from twins import cli\n"
        f"sys.argv = 'twins predict small.json a.png --weights w.safetensors --backend {backend}'.split()\n"
        "try: cli.main()\n"
        "finally: print(*(name for name in ('torch', 'tensorflow') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.splitlines()[-1].split() == imported


@REAL
@pytest.mark.parametrize(
    "name, file, dataset, count, accuracy",
    [
        ("resnet20", "resnet20_cifar10.th", "cifar10_5k", 1_000, 0.915),
        ("lenet_caffe", "lenet_caffe.safetensors", "mnist", 10_000, 0.9914),
    ],
)
def test_real_weights_are_as_good_as_published(name, file, dataset, count, accuracy):
    spec = shared.load(name)
    _, state = reading.load_weights(Path(os.environ["TWINS_DATA"], "weights", file), spec)
    test = predict.labelled_images(dataset, spec)
    found = predict.evaluate(backends.engines(PACKAGES["both"], spec, state), spec, test.x, test.y).summary(["one", "other"])
    assert found.pop("top1") == {"one": accuracy, "other": accuracy}
    assert (found["tested"], found["same_predictions"]) == (count, count)


@REAL
def test_kangaroos_are_wallabies_in_both():
    spec, folder = shared.load("googlenet"), Path(os.environ["TWINS_DATA"])
    _, state = reading.load_weights(folder / "weights" / "googlenet_bvlc.safetensors", spec)
    paths = sorted((folder / "kangaroo" / "images").glob("*.jpg"))[::20]
    found = predict.classify_pictures(backends.engines(PACKAGES["both"], spec, state), spec, paths)
    assert len(found) == 9
    assert all(picture["same_top"] and picture["difference"] < 1e-4 for picture in found)
    named = [[row["name"] for row in picture["top"]] for picture in found]
    assert sum("wallaby, brush kangaroo" in names for names in named) == 7

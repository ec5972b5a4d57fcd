"""Class maps, the boxes that they give, and the command that draws them."""

import json
import os
import sys
import time
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

import keras_impl
import shared
import torch_impl

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import experiment  # noqa: E402
import localisation  # noqa: E402

from shared import images, networks, reading, recipes, weights
from twins import backends, batches, boxes, datasets, ladder, locate, plots, scattered
from twins.cli import locate as command

REAL = pytest.mark.skipif("TWINS_DATA" not in os.environ, reason="TWINS_DATA names no folder with weights and photographs")
TOLERANCE = ladder.TOLERANCES["float64"]["activations"]
WHOLE = (0, 0, 80, 40)  # of a map of 4x8: positions of 10x10 pixels


def small(**changes):
    """The spec of a network with maps of a quarter of the image, for CIFAR-10's classes."""
    layers = [
        {"name": "conv", "type": "conv", "in": 3, "out": 8, "kernel": 3, "stride": 4, "padding": 1},
        {"name": "relu", "type": "relu"},
        {"name": "mean", "type": "global_avg_pool"},
        {"name": "drop", "type": "dropout", "rate": 0.5},
        {"name": "flat", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 10},
    ]
    preprocessing = {"resize": 36, "crop": 32, "channels": "RGB", "scale": 127.5, "mean": [1, 1, 1], "std": [1, 1, 1]}
    return {
        "name": "small",
        "input": [3, 32, 32],
        "classes": "cifar10",
        "preprocessing": preprocessing,
        "layers": layers,
    } | changes


def engines(spec, dtype="float64"):
    state = weights.randomised(weights.initial(spec))
    found = []
    for package in (torch_impl, keras_impl):
        net = package.build(spec, dtype=dtype)
        package.load(net, state)
        found.append(package.Engine(net))
    return found


@pytest.mark.parametrize("positions, pixels", [(7, 224), (3, 20), (1, 5), (28, 28), (5, 3), (2, 9)])
def test_interpolation_is_pytorchs_and_both_frameworks_have_it(positions, pixels):
    maps = np.random.default_rng(0).standard_normal((2, 3, positions, positions + 1))
    images = np.empty((2, 3, pixels, pixels + 3))
    theirs = torch_impl.layers.upsampled(torch.from_numpy(maps), torch.from_numpy(images)).numpy()
    ours = np.array([[boxes.upsampled(response, pixels, pixels + 3) for response in one] for one in maps])
    assert theirs.shape == images.shape and np.allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    keras_maps, keras_images = (np.moveaxis(array, 1, -1) for array in (maps, images))
    keras_found = np.moveaxis(np.asarray(keras_impl.layers.upsampled(keras_maps, keras_images)), -1, 1)
    assert keras_found.dtype == np.float64 and np.allclose(keras_found, theirs, rtol=0, atol=TOLERANCE)


def test_engines_give_the_same_maps_and_leave_dropout_out():
    images = np.random.default_rng(0).standard_normal((2, 3, 21, 30))
    ours, theirs = (engine.class_maps(images) for engine in engines(small()))
    assert ours.shape == theirs.shape == (2, 10, 6, 8) and np.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_dense_class_maps_are_class_maps_at_the_size_of_the_images():
    images = np.random.default_rng(0).standard_normal((2, 3, 21, 30))
    one, other = engines(small())
    with torch.no_grad():
        ours = one.net.eval().dense_class_maps(torch.from_numpy(images)).numpy()
    theirs = np.moveaxis(np.asarray(other.net.dense_class_maps(np.moveaxis(images, 1, -1))), -1, 1)
    expected = [[boxes.upsampled(response, 21, 30) for response in maps] for maps in one.class_maps(images)]
    assert ours.shape == theirs.shape == (2, 10, 21, 30)
    assert np.allclose(ours, expected, rtol=0, atol=TOLERANCE) and np.allclose(theirs, expected, rtol=0, atol=TOLERANCE)


def test_class_maps_of_a_folded_network():
    engine, _ = engines(small())
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 32, 32)))
    with torch.no_grad():
        ours, theirs = (net.eval().class_maps(images) for net in (engine.net, torch_impl.folded(engine.net)))
    assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def with_layers(*layers):
    return small(layers=small()["layers"][:2] + list(layers))


POOL, FLAT = {"name": "mean", "type": "global_avg_pool"}, {"name": "flat", "type": "flatten"}
ONE = {"name": "fc", "type": "conv", "in": 8, "out": 10, "kernel": 1}
HEADLESS = {
    "no pool": with_layers(ONE | {"kernel": 8}, FLAT),
    "a pool of its own": with_layers({"name": "pool", "type": "avg_pool", "kernel": 8}, ONE, FLAT),
    "two layers": with_layers(POOL, ONE | {"out": 8}, ONE | {"name": "fc2"}, FLAT),
    "an activation": with_layers(POOL, {"name": "relu2", "type": "relu"}, ONE, FLAT),
    "padding": with_layers(POOL, ONE | {"padding": 1}, FLAT),
    "a stride": with_layers(POOL, ONE | {"stride": 2}, FLAT),
    "a kernel": with_layers(POOL, ONE | {"kernel": 3, "padding": 1}, FLAT),
    "no classifier": with_layers(POOL, FLAT),
}


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_network_without_class_maps_says_so(kind):
    spec = {key: value for key, value in HEADLESS[kind].items() if key != "classes"}
    with pytest.raises(
        shared.Error, match="small has no class maps: it does not end in a global_avg_pool followed by one linear"
    ):
        torch_impl.build(spec).class_maps(torch.zeros(1, 3, 32, 32))


def test_a_1x1_convolution_is_a_classifier():
    assert networks.head(with_layers(POOL, ONE, FLAT)) == (["conv", "relu"], "fc")


def response(**values):
    """A map of 4x8 with a few positions above 0: `r1c2=3.0`."""
    found = np.full((4, 8), -1.0)
    for place, value in values.items():
        found[int(place[1]), int(place[3])] = value
    return found


@pytest.mark.parametrize(
    "threshold, expected", [(0.0, [10, 0, 60, 40]), (0.2, [10, 10, 60, 40]), (0.5, [20, 10, 60, 20]), (0.9, [50, 10, 60, 20])]
)
def test_a_box_holds_what_is_above_the_threshold(threshold, expected):
    found = response(r0c1=0.5, r3c1=1.0, r1c2=3.0, r1c5=4.0)
    assert boxes.box(found, WHOLE, threshold) == expected


def test_the_threshold_itself_is_not_above():
    assert boxes.box(response(r1c2=2.0, r1c5=4.0), WHOLE, 0.5) == [50, 10, 60, 20]


@pytest.mark.parametrize("threshold", [0, 0.2, 0.9])
def test_no_positive_response_is_no_box(threshold):
    for nothing in (response(), response(r1c1=0.0)):
        assert boxes.box(nothing, WHOLE, threshold) is None


def test_a_box_is_in_the_pixels_of_the_window():
    assert boxes.box(response(r1c2=1.0), (100, -5, 180, 15), 0.2) == [120, 0, 130, 5]


def test_the_peak_is_the_middle_of_a_position():
    found = response(r1c2=3.0, r3c7=4.0)
    assert boxes.peak(found, WHOLE) == [75, 35] and boxes.peak(-found, WHOLE) == [5, 5]


def test_exclusive_maps_leave_out_where_another_class_is_more_probable():
    one, other = response(r0c0=2.0, r1c2=3.0), response(r1c2=5.0)
    maps = np.stack([one, other])
    assert boxes.likeliest(maps)[1, 2] == 1 and boxes.likeliest(maps)[0, 0] == 0
    ours, theirs = boxes.exclusive(maps)
    assert boxes.box(ours, WHOLE, 0.2) == [0, 0, 10, 10] and boxes.box(theirs, WHOLE, 0.2) == [20, 10, 30, 20]


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0),
        ([0, 0, 10, 10], [20, 20, 30, 30], 0),
        ([2, 2, 4, 4], [0, 0, 10, 10], 0.04),
        (None, [0, 0, 10, 10], 0),
    ],
)
def test_intersection_over_union(one, other, expected):
    assert boxes.iou(one, other) == boxes.iou(other, one) == pytest.approx(expected)


def test_scores():
    """Four pictures, of whose two classes the maps are made up: right, in the second place, a box of a half, nowhere."""
    box = [10, 10, 30, 20]
    good, half, none = response(r1c1=1.0, r1c2=1.0), response(r1c2=1.0), response()
    sure = np.full((4, 8), 5.0)
    maps = [[good, none - 1], [good, sure], [half, none], [none, sure]]
    seen = [boxes.localise(np.stack(pair), WHOLE, target=0) for pair in maps]
    found = boxes.scores(seen, [[[60, 0, 70, 10], box]] * 4, 0.2, known=True)
    assert [s.top for s in seen] == [[0, 1], [1, 0], [0, 1], [1, 0]]
    assert boxes.localise(np.stack(maps[1]), WHOLE).target == 1
    assert found == {
        "localisation_error": 0.5,  # an overlap of exactly a half is not right
        "mean_iou": (1 + 1 + 0.5 + 0) / 4,
        "pointing_accuracy": 0.75,
        "top1_classification_error": 0.5,
        "top1_localisation_error": 0.75,
        "top5_classification_error": 0.0,
        "top5_localisation_error": 0.5,
    }
    assert set(boxes.scores(seen, [[box]] * 4, 0.2)) == {"localisation_error", "mean_iou", "pointing_accuracy"}


def test_guesses_are_the_whole_picture_and_its_middle():
    found = boxes.whole_picture_scores([(10, 10), (20, 10)], [[[0, 0, 5, 10.0]], [[0, 0, 20, 8], [1, 1, 2, 2]]])
    assert found == {"localisation_error": 0.5, "mean_iou": (0.5 + 0.8) / 2, "pointing_accuracy": 0.5}


def test_the_box_and_the_peak_of_exclusive_positions():
    maps = np.stack([response(r0c0=2.0, r1c2=3.0), response(r1c2=5.0)])
    one, alone = (boxes.localise(maps, WHOLE, 0, alone=alone) for alone in (False, True))
    assert (one.box(0.2), one.peak) == ([0, 0, 30, 20], [25, 15])
    assert (alone.box(0.2), alone.peak) == ([0, 0, 10, 10], [5, 5])


def test_without_exclusive_positions_there_is_no_peak(tmp_path):
    maps = np.stack([response(r0c0=2.0), response() + 4])
    nowhere = boxes.localise(maps, WHOLE, 0, alone=True)
    assert (nowhere.box(0.2), nowhere.peak) == (None, None)
    assert boxes.scores([nowhere], [[[0, 0, 10, 10]]], 0.2)["pointing_accuracy"] == 0
    plots.draw_heat_map(np.zeros((20, 30, 3), np.uint8), nowhere, tmp_path / "nowhere.png", 0.2)
    assert np.asarray(Image.open(tmp_path / "nowhere.png")).max() < 255  # no white peak


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (50, 77), (36, 36)])
@pytest.mark.parametrize("preprocessing", [{"resize": 36, "crop": 32}, {"resize": 36}, {}])
def test_the_window_is_what_the_network_sees(size, preprocessing):
    """A picture whose pixels say where they are: red across, green down."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = np.stack([across, down, down], -1).astype(np.uint8)
    values = {"channels": "RGB", "scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
    spec = small(preprocessing=values | preprocessing)
    batch, window = images.preprocess([picture], spec)[0], images.window(picture, spec)
    for values, first, last, side in (
        (batch[0].mean(0), window[0], window[2], width),
        (batch[1].mean(1), window[1], window[3], height),
    ):
        centres = first + (np.arange(len(values)) + 0.5) / len(values) * (last - first)
        assert values[1:-1] == pytest.approx((centres[1:-1] - 0.5) / (side - 1), abs=0.006)


def test_classes_by_number_and_name():
    spec = shared.load("googlenet")
    for name in ("104", "wallaby", "wallaby, brush kangaroo", "brush kangaroo"):
        assert locate.class_number(name, spec) == 104
    with pytest.raises(shared.Error, match="has no class 'walaby', did you mean 'wallaby'"):
        locate.class_number("walaby", spec)
    with pytest.raises(shared.Error, match="class 1000: googlenet has 1,000 classes, 0 to 999"):
        locate.class_number("1000", spec)
    with pytest.raises(shared.Error, match="'crane' is a name of the classes 134 and 517; expected one of these numbers"):
        locate.class_number("crane", spec)
    unnamed = {key: value for key, value in small().items() if key != "classes"}
    with pytest.raises(shared.Error, match="no class 'x'; expected a number, 0 to 9$"):
        locate.class_number("x", unnamed)


def test_scattered_digits():
    one, two = (scattered.make(datasets.load_data(), seed, train=8, test=60) for seed in (3, 3))
    other = scattered.make(datasets.load_data(), 4, train=8, test=60)
    assert all(np.array_equal(a, b) for a, b in zip(one.data, two.data, strict=True)) and np.array_equal(one.boxes, two.boxes)
    assert not np.array_equal(one.data.x_test, other.data.x_test)
    assert one.data.x_train.shape == (8, 64, 64, 1) and one.data.x_test.dtype == np.uint8
    for image, (left, top, right, bottom) in zip(one.data.x_test[..., 0], one.boxes, strict=True):
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64 and 24 <= max(right - left, bottom - top) <= 44
        inside = image[top:bottom, left:right]
        assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # it is no larger than the digit


def test_the_label_is_the_largest_digits(monkeypatch):
    """Digits that are as bright as their labels: within the box nothing else is that bright."""
    images = np.zeros((5, 8, 8, 1), np.uint8)
    images[:, 1:7, 2:6] = 50 * np.arange(1, 6)[:, None, None, None]
    bars = batches.Data(images, np.arange(5), images, np.arange(5))
    monkeypatch.setattr(scattered, "CLUTTER", 0)
    made = scattered.make(bars, train=1, test=40)
    counts = []
    for image, label, (left, top, right, bottom) in zip(made.data.x_test, made.data.y_test, made.boxes, strict=True):
        assert (image[top:bottom, left:right] == 50 * (label + 1)).all()
        image[top:bottom, left:right] = 0
        others = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
        counts.append(len(others[0]) > 0)
    assert 0 < np.mean(counts) < 1  # one digit, or more


@pytest.mark.parametrize("name", datasets.SCATTERED)
def test_scattered_digits_by_name(name, monkeypatch):
    load = datasets.load_data
    monkeypatch.setattr(scattered, "make", lambda digits: scattered.Scattered(digits, None))
    monkeypatch.setattr(datasets, "load_data", lambda source: source)
    monkeypatch.setattr(datasets.data, "hold_out", lambda data, holdout: data)
    assert f"scattered_{load(name)}" == name


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a network, its weights, pictures of many kinds, and a folder with boxes."""
    (tmp_path / "small.json").write_text(json.dumps(small()))
    weights.save_state(tmp_path / "w.safetensors", weights.initial(small()))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").resize((150, 120))
    image.convert("RGB").save(tmp_path / "a.png")
    image.convert("L").save(tmp_path / "grey.png")
    image.save(tmp_path / "rgba.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("a", "grey", "rgba"):
        (tmp_path / "data" / "images" / f"{name}.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    (tmp_path / "data" / "text.png").write_text("no picture")
    entries(
        tmp_path,
        {"file": "a.png", "boxes": [[0, 0, 150, 120]]},
        {"file": "grey.png", "boxes": [[0, 0, 5, 5], [20, 0, 140, 119.5]]},
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entries(folder, *found):
    (folder / "data" / "boxes.json").write_text(json.dumps(found))


def test_pictures_of_all_kinds_and_one_that_is_none(twins, files):
    arguments = "locate small.json a.png text.png grey.png rgba.png cmyk.jpg --weights w.safetensors --backend both --out drawn"
    status, out, err = twins(arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 2 and err == "" and [row["image"] for row in rows] == arguments.split()[2:7]
    assert "text.png: not an image" in rows.pop(1)["error"]
    for row in rows:
        assert (
            row["same_box"] is True and row["difference"] < 1e-5 and row["name"] == networks.class_names(small())[row["class"]]
        )
        assert row["box"] is None or 15 < row["box"][0] < row["box"][2] < 135 and 0 < row["box"][1] < row["box"][3] < 120
        assert Image.open(files / "drawn" / f"{Path(row['image']).stem}.png").size == (150, 120)
    assert sorted(path.name for path in (files / "drawn").iterdir()) == ["a.png", "cmyk.png", "grey.png", "rgba.png"]
    spec = small()
    maps = torch_maps(spec, files / "a.png")
    assert rows[0]["class"] == maps.mean((1, 2)).argmax() and rows[0]["response"] == pytest.approx(
        maps[rows[0]["class"]].max(), rel=1e-4
    )
    window = images.window(images.read_picture(files / "a.png"), spec)
    assert rows[0]["peak"] == pytest.approx(boxes.peak(maps[rows[0]["class"]], window), abs=0.01)


def torch_maps(spec, path):
    engine = torch_impl.Engine(torch_impl.build(spec))
    torch_impl.load(engine.net, weights.initial(spec))
    return engine.class_maps(images.preprocess([images.read_picture(path)], spec))[0].astype(np.float64)


def test_pictures_of_one_name_get_files_of_their_own(twins, files):
    (files / "a-2.png").write_bytes((files / "a.png").read_bytes())
    arguments = "locate small.json a-2.png a.png data/images/a.png --weights w.safetensors --out drawn"
    status, _, _ = twins(arguments)
    assert status == 0 and sorted(path.name for path in (files / "drawn").iterdir()) == ["a-2.png", "a-3.png", "a.png"]


def test_pictures_of_one_name_are_few_comparisons(tmp_path, monkeypatch):
    count, compared = 40, []
    equal = PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda one, other: compared.append(other) or equal(one, other))
    found = command._files(tmp_path, [{"image": tmp_path / f"{number}" / "a.png"} for number in range(count)])
    assert [path.name for path in found[:3]] == ["a.png", "a-2.png", "a-3.png"] and len(compared) < 10 * count
    monkeypatch.undo()
    assert len({*found}) == count


@pytest.mark.parametrize("name", ["digits", "scattered_digits", "mine"])
def test_a_folder_is_a_path_whatever_data_sets_are_called_so(name, files, monkeypatch):
    """The built-in digits, and what TWINS_DATA has."""
    for folder, label in ((name, "cat"), (f"elsewhere/{name}", "dog")):
        (files / folder / label).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(files / folder / label / "1.png")
    monkeypatch.setenv("TWINS_DATA", "elsewhere")
    found = locate.read_pictures(Path(name), networks.load(small()))
    assert found == [{"image": Path(name, "cat", "1.png"), "class": 3}]


def test_boxes_of_less_than_a_pixel_are_drawn(twins, files):
    """What the network sees of such a picture has fewer pixels than its maps have positions."""
    Image.new("RGB", (5, 5), "red").save(files / "data" / "dot.png")
    entries(files, {"file": "dot.png", "boxes": [[0, 0, 0.5, 3]]})
    status, _, err = twins("locate small.json --data data --weights w.safetensors --out drawn")
    assert status == 0 and err == "" and Image.open(files / "drawn" / "dot.png").size == (5, 5)


def test_where_two_engines_differ_the_first_is_told():
    spec, path = small(), Path(shared.__file__).parents[1] / "benchmarks" / "results" / "switch.png"
    one, other = (backends.engines([torch_impl], spec, weights.initial(spec, seed))[0] for seed in (0, 1))
    pairs = ([one, other], [one])
    apart, alone = (next(locate.locate_pictures(pair, spec, [{"image": path}], None, 0.2))[0] for pair in pairs)
    assert apart.pop("same_box") is False and apart.pop("difference") > 0.1 and apart == alone


def test_a_class_that_is_nowhere_has_no_box(twins, files):
    state = weights.initial(small())
    state["fc.bias"][3] = -100
    weights.save_state(files / "w.safetensors", state)
    status, out, _ = twins("locate small.json a.png --class cat --weights w.safetensors --out drawn")
    row = json.loads(out)
    assert status == 0 and row["class"] == 3 and row["name"] == "cat" and row["box"] is None and row["response"] < 0
    assert (files / "drawn" / "a.png").exists()
    status, out, _ = twins("locate small.json --data data --class 3 --weights w.safetensors --json")
    assert status == 0 and json.loads(out)["localisation_error"] == 1 and json.loads(out)["mean_iou"] == 0


def test_data(twins, files):
    arguments = "locate small.json --data data --weights w.safetensors --backend both"
    status, out, err = twins(f"{arguments} --json --plot sweep.png --threshold 0.3")
    found = json.loads(out)
    assert status == 0 and err == "" and found["pictures"] == found["same_boxes"] == 2 and found["threshold"] == 0.3
    assert found["whole_picture"]["pointing_accuracy"] == 1 and found["images"][0]["size"] == [150, 120]
    assert found["sweep"]["0.3"] == {key: found[key] for key in ("localisation_error", "mean_iou", "pointing_accuracy")}
    overlaps = [
        boxes.iou(found["images"][0]["box"], [0, 0, 150, 120]),
        boxes.iou(found["images"][1]["box"], [20, 0, 140, 119.5]),
    ]
    assert found["mean_iou"] == pytest.approx(np.mean(overlaps), abs=1e-3) and Image.open("sweep.png").size[0] > 300
    status, out, _ = twins(f"{arguments} --class 2")
    assert (
        status == 0
        and out.startswith("small on data, 2 pictures, PyTorch and Keras\n")
        and "classification error, top 5" in out
    )
    assert "The same class, box and peak in both for all of them." in out


def test_data_with_classes_and_a_picture_that_is_none(twins, files):
    whole = [[0, 0, 150, 120]]
    entries(files, {"file": "text.png", "boxes": whole, "class": 1}, {"file": "rgba.png", "boxes": whole, "class": "cat"})
    status, out, err = twins("locate small.json --data data --weights w.safetensors --json")
    found = json.loads(out)
    assert status == 2 and "text.png: not an image" in err and "error" in found["images"][0]
    assert found["pictures"] == 1 and found["images"][1]["class"] == 3 and "top1_classification_error" in found


BOX = {"file": "a.png", "boxes": [[0, 0, 10, 10]]}
WRONG = {
    "no list": ({}, "boxes.json: expected a list of objects"),
    "no entries": ([], "boxes.json: expected a list of objects"),
    "no object": ([BOX, 3], "entry 2: expected an object"),
    "no file": ([{"boxes": [[0, 0, 1, 1]]}], "entry 1: the key 'file' is missing"),
    "no such picture": ([BOX | {"file": "b.png"}], "entry 1 (b.png): there is no such picture in data"),
    "no boxes": ([BOX | {"boxes": []}], "(a.png): 'boxes' is [], expected a list of boxes, [left, top, right, bottom]"),
    "three numbers": ([BOX | {"boxes": [[0, 0, 10]]}], "'boxes' is [[0, 0, 10]], expected a list of boxes"),
    "a word": ([BOX | {"boxes": [[0, 0, 10, "x"]]}], "expected a list of boxes"),
    "an empty box": ([BOX | {"boxes": [[10, 0, 10, 5]]}], "the box [10, 0, 10, 5] is empty"),
    "outside on the right": ([BOX | {"boxes": [[0, 0, 151, 5]]}], "is not inside the picture, 150x120 pixels"),
    "outside at the bottom": ([BOX | {"boxes": [[0, 0, 15, 120.5]]}], "is not inside the picture, 150x120 pixels"),
    "outside on the left": ([BOX | {"boxes": [[-1, 0, 15, 12]]}], "is not inside the picture, 150x120 pixels"),
    "unknown class": ([BOX | {"class": "catt"}], "has no class 'catt', did you mean 'cat'"),
    "class too high": ([BOX | {"class": 10}], "class 10: small has 10 classes, 0 to 9"),
    "another width": ([BOX | {"width": 300}], "its boxes are for a picture of 300x… pixels, this one has 150x120"),
    "unknown key": ([BOX | {"label": 1}], "unknown key 'label'"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_boxes_that_are_wrong(mistake, twins, files, monkeypatch):
    found, words = WRONG[mistake]
    (files / "data" / "boxes.json").write_text(json.dumps(found))
    monkeypatch.setattr(backends, "start", lambda backend: pytest.fail("the frameworks were started"))
    status, out, err = twins("locate small.json --data data --weights w.safetensors")
    assert status == 2 and out == "" and err.startswith("twins: data/boxes.json: ") and words in err and err.count("\n") == 1


def test_boxes_of_a_picture_on_its_side_are_for_it_upright(files):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(files / "data" / "side.jpg", exif=exif)
    entries(files, {"file": "side.jpg", "boxes": [[0, 30, 20, 40]]})
    assert locate.read_boxes(files / "data", small())[0]["boxes"] == [[0, 30, 20, 40]]


MISTAKES = {
    "no weights": ("small.json a.png", "--weights is missing: an untrained network locates nothing"),
    "nothing to look at": ("small.json --weights w.safetensors", "pass pictures, or with --data a folder with a boxes.json"),
    "too much": ("small.json a.png --data data --weights w.safetensors", "pass either pictures or --data"),
    "no such class": ("small.json a.png --class dgo --weights w.safetensors", "has no class 'dgo', did you mean 'dog'"),
    "threshold": (
        "small.json a.png --threshold 1 --weights w.safetensors",
        "--threshold is 1.0, expected at least 0 and below 1",
    ),
    "no threshold": ("small.json a.png --threshold nan --weights w.safetensors", "--threshold is nan, expected at least 0"),
    "no class maps": ("vgg16 a.png --weights w.safetensors", "vgg16 has no class maps"),
    "no such picture": ("small.json b.png --weights w.safetensors", "b.png: there is no such file"),
    "no such folder": (
        "small.json --data dat --weights w.safetensors",
        "dat: expected a folder with pictures and a boxes.json",
    ),
    "no boxes": ("small.json --data data/images --weights w.safetensors", "data/images/boxes.json: there is no such file"),
    "plot": ("small.json a.png --plot x.png --weights w.safetensors", "--plot is for --data"),
    "a picture of no known kind": (
        "small.json --data data --plot x.gif --weights w.safetensors",
        "x.gif: expected a file ending in",
    ),
    "out is a file": ("small.json a.png --out a.png --weights w.safetensors", "a.png: is a file; --out takes a folder"),
    "out among the pictures": ("small.json a.png --out . --weights w.safetensors", "a.png: this is one of the images"),
    "another class": (
        "small.json --data data --class 2 --weights w.safetensors",
        "--class is 2, but data/boxes.json says that data/images/a.png shows class 3",
    ),
    "no such weights": ("small.json a.png --weights v.safetensors --out drawn", "v.safetensors: there is no such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_before_any_work(mistake, twins, files, monkeypatch):
    arguments, words = MISTAKES[mistake]
    if mistake == "another class":
        entries(files, BOX | {"class": "cat"})
    monkeypatch.setattr(backends, "start", lambda backend: pytest.fail("the frameworks were started"))
    status, out, err = twins(f"locate {arguments}")
    assert status == 2 and out == "" and err.startswith("twins: ") and words in err and err.count("\n") == 1
    assert not (files / "drawn").exists()


def test_the_threshold_is_the_first_halfs_and_the_scores_are_the_seconds():
    """Two boxes in a map, a weak one beside a strong: low thresholds are right in the first half, high ones in the second."""
    map_of_class, one, both = response(r1c1=1.0, r1c2=0.5), [10, 10, 20, 20], [10, 10, 30, 20]
    localisations = [boxes.localise(np.stack([map_of_class, response()]), WHOLE, 0)] * 8
    for first, second, right in ((both, one, 0.45), (one, both, 0.5)):
        scores = localisation.measured(localisations, [first] * 4 + [second] * 4)
        low = scores["threshold"] < 0.5
        assert low == (right < 0.5) and scores["localisation_error"] == 1 and scores["top1_classification_error"] == 0
        assert {error for t, error in scores["sweep"].items() if (t < 0.5) != low} == {0}


# A line of a log
NUMBERS = {"learning_rate": 0.1, "loss": 2.3, "accuracy": 0.1, "test_loss": 2.3, "test_accuracy": 0.1, "images_per_sec": 9.0}
ROW = {"epoch": 1, "step": 1, **NUMBERS, "framework": "PyTorch"}


def test_a_run_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    recipe = recipes.load(recipes.changed(recipes.load("scattered"), ["network=resnet10_small", "steps=1"]))
    other = recipes.load(recipes.changed(recipe, ["seed=1"]))
    spec = recipes.network(recipe)
    assert experiment.complete(tmp_path, recipe) is False
    for step in (0, 1):
        engine = torch_impl.trainer(spec, recipe)
        about = {"recipe": recipe, "spec": spec, "step": step, "sums": [0.0, 0, 0, 0.0], "history": [ROW] * step}
        weights.save_state(tmp_path / "last.safetensors", engine.state(), about)
        assert experiment.complete(tmp_path, recipe) is bool(step)
    with pytest.raises(shared.Error, match="has a run of another recipe or network; choose another folder"):
        experiment.complete(tmp_path, other)


@pytest.mark.parametrize(
    "change, of_the_run, history, is_complete",
    [
        ("patience=2", {}, [ROW | {"epoch": n, "step": n, "test_loss": 2.0 + n} for n in (1, 2, 3)], True),
        ("patience=3", {}, [ROW | {"epoch": n, "step": n, "test_loss": 2.0 + n} for n in (1, 2, 3)], False),
        ("class_weights=balanced", {"class_weights": [1.0] * 10}, [ROW | {"step": 9}], True),
    ],
)
def test_a_run_that_has_ended_is_not_resumed(change, of_the_run, history, is_complete, tmp_path):
    """Early, by its patience; and with numbers for what the recipe leaves to the data."""
    recipe = recipes.load(recipes.changed(recipes.load("scattered"), ["network=resnet10_small", "steps=9", change]))
    spec = recipes.network(recipe)
    about = {"recipe": recipe | of_the_run, "spec": spec, "step": history[-1]["step"], "sums": [0.0, 0, 0, 0.0]}
    arrays = torch_impl.trainer(spec, recipe | of_the_run).state()
    weights.save_state(tmp_path / "last.safetensors", arrays, about | {"history": history})
    assert experiment.complete(tmp_path, recipe) is is_complete


def test_runs_end_with_the_experiment(tmp_path, monkeypatch):
    """One that fails ends the others, which have the cores that this process may use."""
    started, sleep = [], [sys.executable, "-c", "import time; time.sleep(60)"]

    def train(run, environment, children):
        started.append((run.seed, environment["OMP_NUM_THREADS"]))
        if run.seed == 1:
            while not children.processes:
                time.sleep(0.01)
            raise shared.Error("it failed")
        children.start(sleep).wait()

    monkeypatch.setattr(experiment, "train", train)
    monkeypatch.setattr(experiment, "cores", lambda: 6)
    runs = [experiment.Run(tmp_path / f"{seed}", "lenet", seed, {}, []) for seed in range(2)]
    begun = time.monotonic()
    with pytest.raises(shared.Error, match="it failed"):
        experiment.train_all(runs, 2, lambda text: None)
    assert time.monotonic() - begun < 20 and sorted(started) == [(0, "3"), (1, "3")]


def test_the_experiment_with_a_run_that_is_done(tmp_path, monkeypatch, capsys):
    """A run that is done is not made again, and looked at on few images."""
    made = scattered.make(datasets.load_data(), train=8, test=12)
    monkeypatch.setattr(scattered, "make", lambda digits: made)
    recipe = recipes.load(
        recipes.changed(recipes.load("scattered"), ["network=resnet10_small", "steps=1", "data=scattered_digits"])
    )
    spec = recipes.network(recipe)
    (tmp_path / "resnet10_small-0").mkdir()
    history = [ROW]
    about = {"recipe": recipe, "spec": spec, "step": 1, "sums": [0.0, 0, 0, 0.0], "history": history}
    weights.save_state(tmp_path / "resnet10_small-0" / "last.safetensors", torch_impl.trainer(spec, recipe).state(), about)
    monkeypatch.setattr(experiment, "train", lambda *arguments: pytest.fail("it was trained again"))
    localisation.main(tmp_path, ["resnet10_small"], 1, 2, ["steps=1", "data=scattered_digits"])
    out = capsys.readouterr().out
    assert out == (tmp_path / "localisation.txt").read_text() and "resnet10_small" in out and "the whole canvas" in out
    (run,) = json.loads((tmp_path / "localisation.json").read_text())["runs"]
    assert run["map"] == "2x2" and run["gridding"] is None and 0 <= run["exclusive_top1_localisation_error"] <= 1
    assert json.loads((tmp_path / "localisation.jsonl").read_text()) == {"network": "resnet10_small", "seed": 0, **history[0]}
    for name in ("sweep", "examples", "gridding"):
        assert Image.open(tmp_path / f"localisation-{name}.png").size[0] > 200


@pytest.mark.parametrize("name, page", [("localisation", "explanation/localisation.md"), ("kangaroo", "how-to/locate.md")])
def test_the_documentation_shows_the_results(name, page):
    folder = Path(__file__).parents[1]
    first, *rows = (folder / "benchmarks" / "results" / f"{name}.txt").read_text().splitlines()
    shown = (folder / "docs" / page).read_text().splitlines()
    start = shown.index(rows[0])
    assert shown[start : start + len(rows)] == rows


@REAL
def test_googlenet_finds_kangaroos():
    spec, folder = shared.load("googlenet"), Path(os.environ["TWINS_DATA"])
    _, state = reading.load_weights(folder / "weights" / "googlenet_bvlc.safetensors", spec)
    entries = locate.read_boxes(folder / "kangaroo", spec)[::4]
    located = list(locate.locate_pictures(backends.engines([torch_impl], spec, state), spec, entries, None, 0.2))
    scores = boxes.scores([localisation for *_, localisation in located], [entry["boxes"] for entry in entries], 0.2)
    assert len(located) == 41 and scores["pointing_accuracy"] >= 0.9 and scores["mean_iou"] > 0.4
    pair = backends.engines([torch_impl, keras_impl], spec, state)
    both = [result for result, *_ in locate.locate_pictures(pair, spec, entries[::5], None, 0.2)]
    assert len(both) == 9 and all(result["same_box"] and result["difference"] < 1e-4 for result in both)

"""Folders of pictures and masks, what is wrong with some, and the batches that training takes of them."""

import itertools
import json
import re
import shutil
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from shared import folders, images, masks, networks, recipes, shapes
from shared.checks import Error
from shared.data import Data, load_masked
from shared.masks import VOID, Coding
from shared.spec import CLASSES
from twins import augmentation, datasets, pairs, segmentation, training
from twins.loading import Loader
from twins.scattered import Scattered

NETWORK = {
    "name": "dense",
    "input": [3, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "seg", "type": "conv", "in": 4, "out": 3, "kernel": 1},
        {"name": "up", "type": "upsample", "scale": 2},
    ],
}
RECIPE = {
    "name": "tiles",
    "network": NETWORK,
    "data": "tiles",
    "ignore": 9,
    "batch": 2,
    "steps": 4,
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "augmentation": {"scale": [0.5, 2], "window": [6, 8], "flip": True},
    "precision": "float64",
}
CODING = Coding(9, None)
HELD = [2, 4]  # of five pictures, two fifths


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def mask_of(seed):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 9], np.uint8), (8, 10))


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """Five pictures to train on and two to test on, coloured by their masks."""
    for number in range(7):
        part, stem = ("train", "val")[number > 4], f"town/{number:02}"
        mask = mask_of(number)
        picture = np.stack([mask * 20, 255 - mask * 20, mask], -1).astype(np.uint8)
        save(tmp_path / "tiles" / part / "images" / f"{stem}.png", picture)
        save(tmp_path / "tiles" / part / "masks" / f"{stem}.png", mask)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiles"


def test_a_folder(tiles):
    data = load_masked("tiles", ignore=9)
    assert (len(data.x_train), len(data.x_test), data.tested_on, data.classes) == (5, 2, "val", None)
    assert [path[-9:] for path in data.x_train.paths()] == [path[-9:] for path in data.y_train]
    mask = masks.read_mask(data.y_train[3], data.coding, 3, (10, 8))
    assert np.array_equal(mask, np.where(mask_of(3) == 9, VOID, mask_of(3)))
    labels = masks.labels(mask)
    assert set(np.unique(labels)) == {0, 1, 2, masks.IGNORED} and labels.dtype == np.int64


def test_a_folder_that_is_not_divided(tiles):
    flat = load_masked(tiles / "train", holdout=0.4)
    assert (len(flat.x_train), len(flat.x_test), flat.tested_on) == (3, 2, "train")
    assert not set(flat.y_train) & set(flat.y_test)
    assert flat.y_test.tolist() == load_masked(tiles / "train", holdout=0.4).y_test.tolist()
    assert flat.y_test.tolist() == [str(tiles / "train" / "masks" / "town" / f"{number:02}.png") for number in HELD]
    assert flat.coding == Coding(VOID, None) and flat.unseen is None


def test_pictures_held_out_are_chosen_as_for_classes(tiles):
    _, held = folders.held_out(np.zeros(5, int), {0: folders.ALL}, 0.4)
    assert held.tolist() == HELD
    (tiles / "val").rename(tiles / "test")
    whole, apart = load_masked("tiles"), load_masked("tiles", holdout=0.4)
    assert (whole.tested_on, whole.unseen, len(whole.x_train)) == ("test", None, 5)
    assert (apart.tested_on, len(apart.x_train), apart.x_test.names) == ("train", 3, [whole.x_train.names[n] for n in HELD])
    assert apart.unseen.y.tolist() == whole.y_test.tolist() and apart.unseen.coding == whole.coding
    for part, kind in itertools.product(("train", "test"), ("images", "masks")):
        for path in sorted((tiles / part / kind / "town").iterdir())[1:]:
            path.unlink()
    with pytest.raises(Error, match="^tiles: has 1 picture, expected at least 2: one to train on and one to test on$"):
        load_masked("tiles", holdout=0.4)


def test_scattered_digits_are_held_out_too(monkeypatch):
    arrays = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    plain = Data(arrays[:6, ..., None], np.zeros(6, int), arrays[6:, ..., None], np.zeros(4, int))
    made = Scattered(plain, [], (arrays[:6], arrays[6:]))
    monkeypatch.setattr(datasets, "load_scattered", lambda name: made)
    data = datasets.load_masked("scattered_digits", holdout=0.4)
    assert (data.tested_on, len(data.x_train), len(data.x_test), len(data.unseen.x)) == ("train", 4, 2, 4)
    assert np.array_equal(data.y_test, data.x_test[..., 0]) and np.array_equal(data.unseen.y, arrays[6:])


def test_a_class_of_scattered_digits_is_ignored(monkeypatch):
    arrays = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    made = Scattered(Data(arrays[..., None], np.zeros(10, int), arrays[..., None], np.zeros(10, int)), [], (arrays, arrays))
    monkeypatch.setattr(datasets, "load_scattered", lambda name: made)
    data, test = datasets.load_masked("scattered_digits", ignore=9), datasets.load_masked_test("scattered_digits", ignore=9)
    for labels in (data.y_train, data.y_test, test.y):
        assert set(np.unique(labels)) == {*range(9), VOID}
    with pytest.raises(Error, match="scattered_digits: its masks have the class 9, dense has 3: 0 to 2"):
        segmentation.load_test("scattered_digits", NETWORK | {"input": [1, 8, 8]})


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_fewer_bits(bits, tmp_path):
    """Pillow reads them, but writes none: a PNG file by hand."""
    numbers = np.array([[0, 1, 1, 0], [1, 0, 1, 0]], np.uint8) * (1 if bits == 1 else 3)
    rows = [b"\0" + int("".join(f"{number:0{bits}b}" for number in row), 2).to_bytes(-(-4 * bits // 8)) for row in numbers]
    if bits == 1:  # four pixels are half a byte, the upper one
        rows = [bytes([0, row[1] << 4]) for row in rows]
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"".join(rows)), b"IEND")
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    assert np.array_equal(masks.read_mask(tmp_path / "mask.png", CODING, 4, (4, 2)), numbers)


def test_a_size_is_read_without_the_pixels(tiles, monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("the pixels are read"))
    assert images.picture_size(tiles / "val" / "images" / "town" / "05.png") == (10, 8)


def test_a_test_part_without_labels_is_no_division(tiles):
    (tiles / "test").mkdir()
    for kind in ("images", "masks"):
        (tiles / "val" / kind).rename(tiles / kind)
    shutil.rmtree(tiles / "train")
    (tiles / "val").rmdir()
    (tiles / "images" / "town" / "05.png").rename(tiles / "test" / "05.png")
    (tiles / "masks" / "town" / "05.png").unlink()
    assert [*masks.read(tiles).parts] == [""] and len(datasets.load_masked_test("tiles").x) == 1
    for kind in ("images", "masks"):
        shutil.rmtree(tiles / kind)
    for read, message in ((masks.read, "images: there is no such folder"), (folders.read, "test has no folders of classes")):
        with pytest.raises(Error, match=message):
            read(tiles)


def test_colours_numbers_and_palettes_are_the_same_mask(tmp_path):
    (tmp_path / "classes.csv").write_text("name,colour\nroad,#804080\nsky,#4682b4\nvoid,#000000\n")
    numbers = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    names, colours = masks.read_table(tmp_path / "classes.csv")
    painted = np.array(colours, np.uint8)[numbers]
    save(tmp_path / "images" / "a.jpg", painted)
    save(tmp_path / "masks" / "a.png", painted)
    with_palette = Image.fromarray(numbers, "P")
    with_palette.putpalette(sum(map(list, colours[::-1]), []))
    with_palette.save(tmp_path / "palette.png")
    save(tmp_path / "bits.png", numbers == 1, "1")
    folder = masks.read(tmp_path)
    assert (folder.names, [*folder.parts]) == (["road", "sky", "void"], [""])
    coding = Coding(2, tuple(colours))
    expected = np.where(numbers == 2, VOID, numbers)
    for path in (tmp_path / "masks" / "a.png", tmp_path / "palette.png"):
        assert np.array_equal(masks.read_mask(path, coding, 2, (3, 2)), expected)
    assert np.array_equal(masks.read_mask(tmp_path / "bits.png", coding, 2, (3, 2)), numbers == 1)
    test = datasets.load_masked_test(tmp_path, ignore=2)
    assert test.classes == ["road", "sky"] and test.coding == coding


def broken(tiles, what):
    """A part of the training pictures made wrong, and what is said about it."""
    mask = tiles / "train" / "masks" / "town" / "02.png"
    if what == "another size":
        save(mask, mask_of(0)[:, :4])
        return r"02.png: is a mask of 4x8, but its picture has 10x8 pixels"
    if what == "no mask":
        mask.unlink()
        return r"images/town/02.png: has no mask; expected .*masks/town/02.png"
    if what == "no image":
        (tiles / "train" / "images" / "town" / "02.png").unlink()
        return r"masks/town/02.png: has no image; expected .*images/town/02.jpg"
    if what == "JPEG":
        Image.fromarray(mask_of(0)).save(mask, format="JPEG")
        return r"02.png: is a JPEG file, which changes the numbers of classes; masks are PNG files"
    if what == "16 bits":
        save(mask, mask_of(0).astype(np.uint16))
        return r"02.png: has 16 bits a pixel, expected 8"
    if what == "transparency":
        save(mask, mask_of(0), "LA")
        return r"02.png: has Pillow's mode LA, expected numbers .* or colours"
    if what == "number":
        save(mask, np.where(mask_of(0) == 2, 7, mask_of(0)).astype(np.uint8))
        return r"02.png: the pixel at x=\d, y=\d has the number 7, expected 0 to 2, or 9 to ignore it"
    if what == "colour":
        save(mask, np.full((8, 10, 3), 7, np.uint8))
        (tiles / "classes.csv").write_text("name,colour\na,#070708\nb,#000000\nc,#ffffff\n")
        return r"02.png: the pixel at x=0, y=0 has the colour #070707, which no class has, did you mean '#070708'\?"
    if what == "no colours":
        save(mask, np.full((8, 10, 3), 7, np.uint8))
        return r"02.png: has colours, but nothing says what they mean; expected numbers, or classes.csv in the folder"
    (tiles / "classes.csv").write_text("name,colour\na,#070708\nb,red\n")
    return r"classes.csv: line 3 is 'b,red', expected a name and a colour, such as road,#804080"


@pytest.mark.parametrize(
    "what",
    ["another size", "no mask", "no image", "JPEG", "16 bits", "transparency", "number", "colour", "no colours", "table"],
)
def test_what_is_wrong_with_masks(what, tiles):
    message = broken(tiles, what)
    recipe = recipes.load(RECIPE)
    with pytest.raises(Error, match=message):
        spec, data = training.prepare(recipe)
        list(pairs.plain(data.x_train, data.y_train, pairs.Reader(spec, data.coding), Loader()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network": "vgg16", "head": "segmentation"}, "vgg16 has no class maps"),
        ({"network": "resnet18"}, "resnet18 classifies whole images"),
        ({"augmentation": {"crop": 0.5}}, "augmentation: unexpected 'crop', as dense classifies every pixel.*scale, window"),
        (
            {"augmentation": {"window": [6, 7]}},
            "'window' is 6 pixels high and 7 wide; dense takes multiples of 2, such as 6 and 8",
        ),
        (
            {"augmentation": {"scale": [0.5, 2]}},
            "pictures of different sizes cannot form a batch: they are scaled; expected a 'window'",
        ),
        ({"augmentation": {"scale": [2, 0.5]}}, "'scale' is .*, expected two numbers above 0, the smaller first"),
        ({"classes": [[0], [1]]}, "'classes' is a list of labels for each class, but dense_2_classes classifies every pixel"),
        ({"classes": ["a", "b"], "data": "tiles"}, "has the number 2, expected 0 to 1, or 9"),
        ({"head": "detection"}, '\'head\' is "detection", expected one of "segmentation"'),
    ],
)
def test_recipes_that_do_not_fit(changes, message, tiles):
    with pytest.raises(Error, match=message):
        recipe = recipes.load(RECIPE | changes)
        spec, data = training.prepare(recipe)
        next(pairs.stream(recipe, spec, data, 0, Loader()))
        next(pairs.stream(recipe, spec, data, 1, Loader()))


@pytest.mark.parametrize("window", [True, False])
def test_no_file_is_opened_without_need(window, tiles, monkeypatch):
    opened = []
    monkeypatch.setattr(images, "picture_size", lambda path, read=images.picture_size: opened.append(path) or read(path))
    monkeypatch.setattr(masks, "check_file", lambda path, size, read=masks.check_file: opened.append(path) or read(path, size))
    fitted = []
    monkeypatch.setattr(shapes, "check_fits_memory", lambda rows, size: fitted.append(size))
    recipe = recipes.load(RECIPE if window else RECIPE | {"augmentation": {}})
    _, data = training.prepare(recipe)
    tested = [*data.x_test.paths(), *data.y_test.tolist()]
    trained = [] if window else data.x_train.paths()
    sizes = 0 if window else 2  # of a batch, which the first picture has, for two checks
    assert sorted(opened) == sorted([*tested, *trained, *trained[:1] * sizes])
    assert sorted(fitted) == ([(6, 8), (8, 10)] if window else [(8, 10)])


def test_pictures_of_two_sizes_without_a_window(tiles):
    save(tiles / "train" / "images" / "town" / "03.png", np.zeros((6, 10, 3), np.uint8))
    message = "cannot form a batch: .*00.png has 10x8 pixels, .*03.png has 10x6 pixels; expected a 'window' in the augmentation"
    with pytest.raises(Error, match=message):
        training.prepare(recipes.load(RECIPE | {"augmentation": {}}))


@pytest.mark.parametrize("part", ["val", "train"])
def test_when_a_mask_of_another_size_is_seen(part, tiles):
    """One to test on before the run, one to train on when it is read."""
    save(next((tiles / part / "masks" / "town").iterdir()), mask_of(0)[:, :4])
    recipe = recipes.load(RECIPE)
    with pytest.raises(Error, match="is a mask of 4x8, but its picture has 10x8 pixels") if part == "val" else nullcontext():
        training.prepare(recipe)


@pytest.mark.parametrize("changes", [{}, {"augmentation": {}}])
@pytest.mark.parametrize("part, name", [("train", "00"), ("val", "05")])
def test_pictures_that_cannot_be_read_are_skipped_or_told(part, name, changes, tiles):
    (tiles / part / "images" / "town" / f"{name}.png").write_bytes(b"")
    recipe = recipes.load(RECIPE | {"class_weights": "balanced"} | changes)
    with pytest.raises(Error, match=f"{name}.png: ") if part == "val" or not changes.get("augmentation", 1) else nullcontext():
        training.prepare(recipe)
    spec, data = training.prepare(recipe, skip=True)
    weights = pairs.balanced(recipe, data, spec, skip=True)["class_weights"]
    counts = sum(np.bincount(mask_of(number).ravel(), minlength=10)[:3] for number in range(part == "train", 5))
    assert np.allclose(weights, counts.sum() / (3 * counts), rtol=1e-15)
    if part == "train":
        with pytest.raises(Error, match=f"{name}.png: "):
            pairs.balanced(recipe, data, spec)


@pytest.mark.parametrize(
    "layers, message",
    [
        ({"conv1": {"in": 4}}, "dense takes 4 channels, pictures have 1 or 3"),
        ({"up": {"scale": 1}}, "dense ends in a map of stride 2, expected 1: one logit per pixel and class"),
        ({"seg": {"out": 256}}, "dense has 256 classes, but masks of bytes at most 255"),
    ],
)
def test_networks_that_segment_no_pictures(layers, message):
    chain = [layer | layers.get(layer["name"], {}) for layer in NETWORK["layers"]]
    with pytest.raises(Error, match=message):
        pairs.check_network(networks.load(NETWORK | {"input": [chain[0]["in"], 8, 8], "layers": chain}))


def test_the_stride_is_that_of_the_smallest_map():
    twice = [*NETWORK["layers"][:-1], {"name": "half", "type": "conv", "in": 3, "out": 3, "kernel": 2, "stride": 2}]
    ups = [{"name": name, "type": "upsample", "scale": 2} for name in ("up1", "up2")]
    assert pairs.stride(NETWORK | {"layers": [*twice, *ups]}) == 4


def test_masks_for_a_network_that_classifies_images(tiles):
    with pytest.raises(Error, match="tiles: has images and masks, for a network that classifies every pixel"):
        datasets.load_data("tiles")


def test_pictures_and_masks_are_changed_alike(tiles):
    recipe = recipes.load(RECIPE)
    spec, data = training.prepare(recipe)
    stream = pairs.stream(recipe, spec, data, 0, Loader())
    steps = [next(stream) for _ in range(4)]
    for x, y in steps:
        assert x.shape == (2, 3, 6, 8) and y.shape == (2, 6, 8)
        assert {*np.unique(y)} <= {0, 1, 2, masks.IGNORED}  # the nearest pixel's, nothing between two
        # Where neighbours have one class, no interpolation has changed the picture: its third channel is the number.
        number = (x[:, 2] + 1) * 127.5
        inside = np.ones(y.shape, bool)
        for axis in (1, 2):
            for shift in (-1, 1):
                inside &= np.roll(y, shift, axis) == y
        inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
        inside &= y >= 0
        assert np.abs(number - y)[inside].max(initial=0) < 1.01
    again = next(pairs.stream(recipe, spec, data, 2, Loader()))
    assert all(np.array_equal(one, other) for one, other in zip(again, steps[2], strict=True))
    assert not np.array_equal(steps[0][1], steps[1][1])
    halves = [next(pairs.stream(recipe, spec, data, 2, Loader(), rank, 2)) for rank in range(2)]
    assert np.array_equal(np.concatenate([half[0] for half in halves]), again[0])


def test_a_window_beyond_the_picture_is_ignored():
    picture, mask = Image.new("RGB", (4, 3), "white"), Image.new("L", (4, 3), 1)
    seen = set()
    for seed in range(40):
        pixels, labels = augmentation.pair(np.random.default_rng(seed), picture, mask, (1, 2, 3), window=(5, 4))
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        assert labels.shape == (5, 4) and (labels == 1).sum() == 12 and (labels == VOID).sum() == 8
        assert (pixels[labels == VOID] == (1, 2, 3)).all()
        seen.add(int(np.argmax(labels[:, 0] == 1)))
    assert seen == {0, 1, 2}


def test_balanced_class_weights(tiles):
    recipe = recipes.load(RECIPE | {"class_weights": "balanced"})
    spec, data = training.prepare(recipe)
    counts = sum(np.bincount(mask_of(number).ravel(), minlength=10)[:3] for number in range(5))
    assert np.allclose(pairs.balanced(recipe, data, spec)["class_weights"], counts.sum() / (3 * counts), rtol=1e-15)


def test_lists_that_come_with_the_project():
    for name, count in (("camvid", 11), ("cityscapes", 19)):
        names, colours = masks.read_table(CLASSES / f"{name}.csv")
        assert names == networks.names_in(name, CLASSES) and len(colours) == count == len({*colours})
        assert masks.palette(names) == colours
    assert masks.palette([*"abcd"]) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]  # PASCAL VOC's first


@pytest.mark.long
def test_scattered_digits_know_their_pixels():
    data = datasets.load_masked("scattered_digits")
    x, y = data.x_test[..., 0], data.y_test
    assert y.shape == x.shape and set(np.unique(y)) == {*range(11)} and data.coding.ignore == VOID
    plain = datasets.load_data("scattered_digits")
    assert np.array_equal(plain.x_test, data.x_test)
    assert (x[y < 10] >= 64).all()
    largest = [np.bincount(mask[mask < 10], minlength=10).argmax() for mask in y]
    assert np.mean(largest == plain.y_test) > 0.9  # nearly always the largest digit covers most


def test_one_message_from_the_command(tiles, twins):
    (tiles.parent / "mine.json").write_text(json.dumps(RECIPE))
    shutil.rmtree(tiles / "val" / "masks")
    status, out, error = twins("train", "mine.json", folder=tiles.parent)
    assert status == 2 and re.fullmatch(r"twins: .*val/masks: there is no such folder; expected images and masks .*\n", error)

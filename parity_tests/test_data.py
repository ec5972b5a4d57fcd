"""Data sets and batches."""

import gzip
import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest
import torchvision

import shared
from shared import dropout, images, weights
from twins import batches, datasets

# Of (seed, step): the order of images, augmentation without and with mirroring, a dropout mask, an array of initial weights.
GOLDEN = [
    (0, 0, "b7ff5e4e75ac", "1751fbadfa3c", "7a5fd52d697f", "f98735015d63", "58dc5c86423c"),
    (0, 30, "7187971d9094", "8743f5810478", "7ae67ae06eee", "d619b8853bb5", "58dc5c86423c"),
    (3, 22, "eb670f2a647b", "f963c5867051", "06026b88b885", "13d1cf9ccdd6", "1ab214c7c375"),
]


def test_digits():
    digits = datasets.load_data()
    assert [array.shape for array in digits[:4]] == [(1437, 8, 8, 1), (1437,), (360, 8, 8, 1), (360,)]
    assert digits.x_train.dtype == np.uint8 and digits.x_train.max() == 255
    assert set(digits.y_test) == set(range(10))


def test_a_batch_is_what_the_network_takes():
    digits = datasets.load_data().x_train[:2]
    batch = images.prepare(digits, 3, (32, 40))
    assert batch.shape == (2, 3, 32, 40) and batch.dtype == np.float32
    assert batch.min() >= -1 and batch.max() <= 1
    assert np.array_equal(batch[:, 0], batch[:, 1])
    same_size = images.prepare(digits, 1, (8, 8), "float64")
    assert np.allclose(same_size[:, 0], digits[..., 0] / 127.5 - 1, atol=1e-15)


def test_colour_becomes_grey_by_luma():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert images.prepare(red, 1, (4, 4)) == pytest.approx(76 / 127.5 - 1, abs=1e-6)  # 0.299 of 255


def test_other_channels_are_refused():
    with pytest.raises(shared.Error, match="takes 4 channels; the images have 1 or 3"):
        images.prepare(datasets.load_data().x_train[:1], 4, (8, 8))


def test_an_epoch_sees_every_image_once():
    seen = np.concatenate([batches.indices(20, 5, step) for step in range(4)])
    assert sorted(seen) == list(range(20))
    assert not np.array_equal(seen, np.concatenate([batches.indices(20, 5, step) for step in range(4, 8)]))


def test_batches_are_a_function_of_seed_and_step():
    assert np.array_equal(batches.indices(100, 7, 30, seed=1), batches.indices(100, 7, 30, seed=1))
    assert not np.array_equal(batches.indices(100, 7, 30, seed=1), batches.indices(100, 7, 30, seed=2))
    assert len(batches.indices(3, 64, 0)) == 3


def fingerprint(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("seed, step, order, framed, mirrored, mask, weight", GOLDEN)
def test_what_a_seed_draws_is_what_it_drew(seed, step, order, framed, mirrored, mask, weight):
    """Else a run that was stored would not go on as it was begun: another NumPy may draw other numbers from a seed.

    Should this turn red after an update of NumPy, hold back the update, or draw with a generator of our own.
    """
    pictures = np.arange(4 * 9 * 9 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 9, 9, 3)
    spec = {"name": "d", "input": [3, 9, 9], "layers": [{"name": "drop", "type": "dropout", "rate": 0.3}]}
    drawn = [
        batches.indices(1437, 64, step, seed).astype("<i8"),
        batches.augment(pictures, seed, step, pad=4),
        batches.augment(pictures, seed, step, pad=4, flip=True),
        dropout.masks(spec, {"drop": 0.3}, (4, 3, 9, 9), step, seed)["drop"].astype("<f8"),
        weights.initial("resnet20", seed)["layer1.0.conv1.weight"].astype("<f4"),
    ]
    assert [fingerprint(array) for array in drawn] == [order, framed, mirrored, mask, weight]


def arrays(**changes):
    images, labels = np.zeros((4, 6, 6, 3), np.uint8), np.zeros(4, np.int64)
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changes


def test_an_npz_by_path_and_by_name(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **arrays(y_test=np.ones((4, 1), np.uint8)))
    monkeypatch.setenv("TWINS_DATA", str(tmp_path))
    for name in (tmp_path / "mine.npz", "mine"):
        found = datasets.load_data(name)
        assert found.x_train.shape == (4, 6, 6, 3) and found.y_test.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "content, words",
    [
        (arrays(x_train=np.zeros((4, 6, 6, 3))), "x_train is float64 of shape"),
        (arrays(x_test=np.zeros((4, 3, 6, 6), np.uint8)), "x_test is uint8 of shape \\(4, 3, 6, 6\\)"),
        (arrays(y_train=np.zeros(3, np.int64)), "y_train has 3 labels of int64, expected 4"),
        (arrays(y_test=np.full(4, -1)), "labels of 0 to 999,999"),
        (arrays(y_test=np.full(4, 2**63, np.uint64)), "labels of 0 to 999,999"),
        ({"images": np.zeros(3)}, "expected the arrays x_train, y_train, x_test, y_test"),
        (b"PK\x03\x04 but no more", "not a complete .npz file"),
        (b"", "not a complete .npz file"),
    ],
)
def test_a_wrong_file(content, words, tmp_path):
    path = tmp_path / "mine.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(shared.Error, match=words) as error:
        datasets.load_data(path)
    assert str(path) in str(error.value)


def test_an_array_alone_is_no_data_set(tmp_path):
    with open(tmp_path / "mine.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(shared.Error, match="not a complete .npz file"):
        datasets.load_data(tmp_path / "mine.npz")


@pytest.mark.skipif("TWINS_DATA" not in os.environ, reason="TWINS_DATA names no folder with mnist.npz and cifar10_5k.npz")
@pytest.mark.parametrize("name, counts, side", [("mnist", (60_000, 10_000), 28), ("cifar10_5k", (4_000, 1_000), 32)])
def test_real_data(name, counts, side):
    found = datasets.load_data(name)
    assert (len(found.x_train), len(found.x_test)) == counts and found.x_train.shape[1:3] == (side, side)
    assert set(found.y_train) == set(range(10))


def test_a_download_leaves_stdout_alone(monkeypatch, tmp_path, capfd):
    """torchvision prints which mirror it tries next."""

    class Printing:
        data, targets = np.zeros((4, 32, 32, 3), np.uint8), [0, 1, 2, 3]

        def __init__(self, *arguments, **options):
            print("Failed to download, trying the next mirror")

    monkeypatch.delenv("TWINS_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Printing)
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path)
    assert datasets.load_data("cifar10").y_test.tolist() == [0, 1, 2, 3]
    out, err = capfd.readouterr()
    assert out == "" and "the next mirror" in err


def test_unknown_data(monkeypatch):
    monkeypatch.delenv("TWINS_DATA", raising=False)
    with pytest.raises(shared.Error, match="'cifar11', did you mean 'cifar10'"):
        datasets.load_data("cifar11")
    with pytest.raises(shared.Error, match="nowhere.npz: there is no such file"):
        datasets.load_data("nowhere.npz")


def test_mnist_in_the_cache_folder_is_read_by_torchvision(tmp_path, monkeypatch):
    monkeypatch.delenv("TWINS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = datasets.cache_folder() / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (5, 28, 28), np.uint8), generator.integers(0, 10, 5).astype(np.uint8)
    for part in ("train", "t10k"):
        # The format of LeCun's files: a magic number, the sizes, the bytes.
        packed = struct.pack(">iiii", 2051, 5, 28, 28) + images.tobytes(), struct.pack(">ii", 2049, 5) + labels.tobytes()
        for kind, content in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), packed, strict=True):
            (folder / f"{part}-{kind}").write_bytes(content)
            (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(content))
    for _ in range(2):
        mnist = datasets.load_data("mnist")
        assert np.array_equal(mnist.x_train[..., 0], images) and np.array_equal(mnist.y_test, labels)

        def read_only(*_):
            raise PermissionError(30, "Read-only file system")

        monkeypatch.setattr(datasets.FileLock, "acquire", read_only)  # and once more, from a cache that cannot be written


def test_a_picture(tmp_path):
    from PIL import Image

    Image.new("CMYK", (5, 3), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    assert images.read_picture(tmp_path / "red.jpg").shape == (3, 5, 3)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(shared.Error, match="text.png: not an image"):
        images.read_picture(tmp_path / "text.png")
    with pytest.raises(shared.Error, match="none.png: there is no such file"):
        images.read_picture(tmp_path / "none.png")


def test_augmented():
    images = np.random.default_rng(0).integers(1, 256, (64, 8, 6, 3)).astype(np.uint8)
    found = batches.augment(images, 3, 7, pad=2, flip=True)
    assert found.shape == images.shape and found.dtype == np.uint8
    assert np.array_equal(found, batches.augment(images, 3, 7, pad=2, flip=True))
    assert not np.array_equal(found, batches.augment(images, 3, 8, pad=2, flip=True))
    assert not np.array_equal(found, batches.augment(images, 4, 7, pad=2, flip=True))
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places, mirrored = set(), 0
    for image, frame in zip(found, framed, strict=True):
        windows = {(i, j, m): frame[i : i + 8, j : j + 6][:, :: 1 - 2 * m] for i in range(5) for j in range(5) for m in (0, 1)}
        where = [place for place, window in windows.items() if np.array_equal(window, image)]
        assert len(where) == 1
        places.add(where[0][:2])
        mirrored += where[0][2]
    assert len(places) > 15 and 20 < mirrored < 44
    assert np.array_equal(batches.augment(images, 3, 7), images)


def test_normalising_takes_the_memory_of_one_batch():
    x = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3)).astype(np.uint8)
    spec = {"input": [3, 64, 64], "preprocessing": {"channels": "RGB", "scale": 255, "mean": [0.1, 0.2, 0.3], "std": [0.3] * 3}}
    mean, std = (np.array(values, "float32").reshape(-1, 1, 1) for values in ([0.1, 0.2, 0.3], [0.3] * 3))
    expected = (x.transpose(0, 3, 1, 2).astype("float32") / 255 - mean) / std
    tracemalloc.start()
    values = images.normalise(x, spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(values, expected) and values.dtype == np.float32 and peak < 1.5 * values.nbytes


def test_pixels_and_their_values():
    x = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3)).astype(np.uint8)
    spec = {"input": [3, 9, 7], "preprocessing": {"channels": "BGR", "scale": 2, "mean": [1, 2, 3], "std": [1, 2, 4]}}
    assert images.pixels(x, spec) is x  # nothing to do
    values = images.normalise(x, spec, "float64")
    assert values.shape == (5, 3, 9, 7) and values[2, 0, 4, 1] == x[2, 4, 1, 2] / 2 - 1
    assert values[2, 2, 4, 1] == (x[2, 4, 1, 0] / 2 - 3) / 4
    assert np.array_equal(images.preprocess(x, spec, "float64"), values)
    assert images.pixels(x, {"input": [1, 4, 5]}).shape == (5, 4, 5, 1)

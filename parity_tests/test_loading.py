"""Reading pictures ahead in other processes, and what is done to them on the way to the network."""

import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from shared import folders, images, recipes
from shared.checks import Error
from shared.data import Data
from twins import augmentation, batches, training
from twins.loading import Loader

RECIPE = {"batch": 4, "seed": 3, "precision": "float64", "augmentation": {}}
SPEC = {"name": "small", "input": [3, 8, 8], "layers": [{"name": "flat", "type": "flatten"}]}


def photograph(seed, height=40, width=60):
    """A picture with large and small features."""
    generator = np.random.default_rng(seed)
    large = Image.fromarray(generator.integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = generator.integers(-20, 20, (height, width, 3))
    return np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    """Ten pictures of several sizes."""
    for number in range(10):
        path = tmp_path / ("odd" if number % 2 else "even") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(number, 20 + number, 30 - number)).save(path)
    part = folders.read(tmp_path).parts[""]
    return Data(*part, *part)


def taken(recipe, data, start, count, loader):
    stream = batches.stream(recipe, SPEC, data, start, loader)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def same(one, other):
    return all(np.array_equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


def test_a_signal_to_the_group_does_not_reach_the_readers():
    with Loader(1) as loader:
        (group,) = loader.map(os.getpgrp, [()])
    assert group != os.getpgrp()


CHANGES = [{}, {"pad": 2, "flip": True}, {"crop": 0.1, "flip": True, "jitter": 0.4}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_batches_are_the_same_for_any_number_of_processes(changes, data):
    recipe = RECIPE | {"augmentation": changes}
    expected = [batches.batch(recipe, SPEC, data, step) for step in range(6)]
    for workers in (1, 2):
        with Loader(workers) as loader:
            found = taken(recipe, data, 0, 6, loader)
            assert same(found, expected)
            assert same(taken(recipe, data, 3, 3, loader), expected[3:])  # as a resumed run
    x, y = expected[0]
    assert x.shape == (4, 3, 8, 8) and y.tolist() == data.y_train[batches.indices(10, 4, 0, 3)].tolist()
    assert not same(expected[:1], [batches.batch(recipe, SPEC, data, 2)])  # the same images in part, in another epoch


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_files_and_arrays_are_the_same_data(changes, tmp_path):
    for number in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(photograph(number, 8, 8)).save(tmp_path / "a" / f"{number}.png")
    part = folders.read(tmp_path).parts[""]
    files, arrays = Data(*part, *part), Data(np.stack([*part.pictures]), part.labels, np.stack([*part.pictures]), part.labels)
    recipe = RECIPE | {"augmentation": changes}
    for step in range(3):
        assert same([batches.batch(recipe, SPEC, files, step)], [batches.batch(recipe, SPEC, arrays, step)])


@pytest.mark.parametrize("changes", [*CHANGES, {"pad": 2, "mixup": 0.4}], ids=str)
def test_each_process_reads_its_share(changes, data, monkeypatch):
    """Of a step, what makes up the batch of one process; with mixup, the partners of its images too."""
    recipe, read = RECIPE | {"augmentation": changes, "accumulate": 2}, []
    open_picture = images.open_picture
    monkeypatch.setattr(images, "open_picture", lambda path: [read.append(path), open_picture(path)][1])
    for step in range(3):
        (x, labels), names = batches.batch(recipe, SPEC, data, step), {*read}
        assert len(names) == 8
        for rank in range(2):
            read.clear()
            own, own_labels = next(batches.stream(recipe, SPEC, data, step, Loader(), rank, 2))
            assert np.array_equal(own, x[rank::2]) and len(read) == len({*read}) and {*read} <= names
            if "mixup" in changes:
                assert np.array_equal(own_labels.second, labels.second[rank::2]) and own_labels.share == labels.share
                assert np.array_equal(own_labels.first, labels.first[rank::2]) and 4 <= len(read) <= 8
            else:
                assert np.array_equal(own_labels, labels[rank::2]) and len(read) == 4
        read.clear()


def test_an_unreadable_picture(data):
    chosen = batches.indices(10, 4, 0, 3)
    expected = batches.batch(RECIPE, SPEC, data, 0)
    path = data.x_train.paths()[chosen[1]]
    with open(path, "r+b") as file:
        file.truncate(60)
    with Loader(1) as loader, pytest.raises(Error, match=f"{os.path.basename(path)}: not an image that Pillow can read"):
        taken(RECIPE, data, 0, 1, loader)
    with Loader(1, skip=True) as loader:
        ((x, y),) = taken(RECIPE, data, 0, 1, loader)
        assert [os.path.basename(path) in line for line in loader.unreadable] == [True]
    assert same([(x, y)], [(expected[0][[0, 2, 2, 3]], expected[1][[0, 2, 2, 3]])])  # the next one takes its place
    read = batches.read_plain(data.x_train[chosen], SPEC, skip=True)
    assert read.places == [0, 2, 3] and len(read.pixels) == 3 and len(read.errors) == 1
    for place in chosen:
        open(data.x_train.paths()[place], "w").close()
    with pytest.raises(Error, match="no image of a whole batch can be read: .*png: not an image"):
        taken(RECIPE, data, 0, 1, Loader(skip=True))


def test_a_picture_too_thin_to_be_resized(data, tmp_path):
    preprocessing = {"resize": 256, "crop": 8, "channels": "RGB", "scale": 255, "mean": [0] * 3, "std": [1] * 3}
    layers = [*SPEC["layers"], {"name": "fc", "type": "linear", "in": 192, "out": 2}]
    spec = SPEC | {"preprocessing": preprocessing, "layers": layers}
    about = {"name": "thin", "network": spec, "data": str(tmp_path), "batch": 2, "epochs": 1}
    recipe = recipes.load(about | {"optimizer": {"name": "sgd", "learning_rate": 0.1}})
    x = training.prepare(recipe)[1].x_train
    path = x.paths()[0]
    Image.new("RGB", (4000, 1)).save(path)
    words = f"{re.escape(path)}: an image of 4000x1 becomes one of"
    with pytest.raises(Error, match=f"^{words}"):
        batches.read_plain(x[:2], spec)
    read = batches.read_plain(x[:2], spec, skip=True)
    assert read.places == [1] and len(read.errors) == 1 and read.errors[0].startswith(path)
    with pytest.raises(Error, match=words):
        training.prepare(recipe)
    training.prepare(recipe, skip=True)
    with pytest.raises(Error, match="none of the images can be read"):
        batches.image_size(x[:1], spec, skip=True)


def test_a_picture_that_vanishes(data):
    os.remove(data.x_train.paths()[0])
    with pytest.raises(Error, match="0.png: there is no such file"):
        list(data.x_train)


def slow(*numbers):
    """Arguments for `eval`, which the processes have without importing this file: the number and the process, after a while."""
    return ((f"(__import__('time').sleep(0.05), {number}, __import__('os').getpid())[1:]",) for number in numbers)


def test_results_come_in_order_and_are_waited_for():
    with Loader(2) as loader:
        results = list(loader.map(eval, slow(*range(9))))
    assert [number for number, _ in results] == [*range(9)] and len({process for _, process in results} - {os.getpid()}) == 2
    assert 0 < loader.waited < 30
    here = Loader()
    assert list(here.map(eval, slow(1))) == [(1, os.getpid())] and here.waited >= 0.05


def test_a_killed_process_is_an_error():
    with Loader(1) as loader, pytest.raises(Error, match="a process that reads pictures was killed"):
        results = loader.map(eval, slow(*range(100)))
        _, process = next(results)
        os.kill(process, signal.SIGKILL)
        list(results)


def test_processes_that_cannot_start(monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.Lock.__init__", full)
    with pytest.raises(Error, match="cannot be started: No space left on device; --workers 0 reads in the main process"):
        next(Loader(1).map(eval, slow(1)))


PARENT = """
import time
from twins.loading import Loader
if __name__ == "__main__":
    print(next(Loader(1).map(eval, [("__import__('os').getpid()",)])), flush=True)
    time.sleep(60)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(1000):
        try:
            with open(f"/proc/{worker}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")


def test_random_parts_are_torchvisions():
    """Their bytes, those of the same part by torchvision; their areas and ratios, those that it draws."""
    picture = photograph(1)
    boxes = [augmentation.random_box(np.random.default_rng(n), 40, 60, 0.08) for n in range(2000)]
    for left, top, right, bottom in boxes[:20]:
        ours = images.cut_out(picture, SPEC, (left, top, right, bottom))
        resized = functional.resized_crop(
            Image.fromarray(picture), top, left, bottom - top, right - left, [8, 8], antialias=True
        )
        assert np.array_equal(ours, np.asarray(resized))
    torch.manual_seed(0)
    theirs = [
        transforms.RandomResizedCrop.get_params(Image.fromarray(picture), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)
    ]
    for measure, tolerance in ((lambda h, w: h * w / 2400, 0.02), (lambda h, w: math.log(w / h), 0.02)):
        ours = np.array([measure(bottom - top, right - left) for left, top, right, bottom in boxes])
        others = np.array([measure(h, w) for _, _, h, w in theirs])
        assert abs(ours.mean() - others.mean()) < tolerance and abs(ours.std() - others.std()) < tolerance
    assert all(0 <= left < right <= 60 and 0 <= top < bottom <= 40 for left, top, right, bottom in boxes)
    for height, width in ((1, 1), (1, 50), (50, 1), (300, 2)):  # where nothing fits, the largest in the centre
        left, top, right, bottom = augmentation.random_box(np.random.default_rng(0), height, width, 1)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert abs((left + right) - width) <= 1 and abs((top + bottom) - height) <= 1


class Drawn:
    """Three factors and an order, as a generator gives them."""

    def __init__(self, factors, order):
        self.factors, self.order = factors, order

    def uniform(self, low, high, count):
        assert (low, high, count) == (0.6, 1.4, 3)
        return np.array(self.factors)

    def permutation(self, count):
        return np.array(self.order)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_jitter_is_torchvisions(order):
    picture, factors = photograph(2), (0.7, 1.3, 0.65)
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    expected = Image.fromarray(picture)
    for place in order:
        expected = changes[place](expected, factors[place])
    assert np.array_equal(augmentation.jittered(Drawn(factors, order), picture, 0.4), np.asarray(expected))
    grey = picture[..., :1]
    expected = Image.fromarray(grey[..., 0])
    for place in order:
        expected = changes[place](expected, factors[place]) if place < 2 else expected
    assert np.array_equal(augmentation.jittered(Drawn(factors, order), grey, 0.4)[..., 0], np.asarray(expected))

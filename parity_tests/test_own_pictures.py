"""Training on folders of pictures: the same run as on the same images in memory, resumed and in both frameworks."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from shared import weights
from twins import ladder, runlog

WORDS = ["screw_m3", "screw_m4", "washer"]
NETWORK = {
    "name": "tiny",
    "input": [3, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 4, "out": 4},
        {"name": "pool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 4, "out": 5},
    ],
}
RECIPE = {
    "name": "mine",
    "network": "tiny.json",
    "data": "photos",
    "batch": 4,
    "epochs": 2,
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "augmentation": {"pad": 1, "flip": True},
    "precision": "float64",
}
FOLDER = ("train", "mine.json", "--workers", "0")


def images(count, seed):
    """Pictures whose colour says what they are, a little."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(WORDS)
    pixels = generator.integers(0, 200, (count, 8, 8, 3))
    pixels[np.arange(count), ..., labels] += 55
    return pixels.astype(np.uint8), labels


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same images as a folder and as an .npz, both in the order of the folder's names."""
    root = tmp_path_factory.mktemp("pictures")
    arrays = {}
    for part, name, count in (("train", "train", 18), ("test", "val", 9)):
        x, y = images(count, len(part))
        order = np.argsort(y, kind="stable")
        arrays |= {f"x_{part}": x[order], f"y_{part}": y[order]}
        for number, (image, label) in enumerate(zip(x, y, strict=True)):
            path = root / "photos" / name / WORDS[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    np.savez(root / "photos.npz", **arrays)
    (root / "tiny.json").write_text(json.dumps(NETWORK))
    (root / "mine.json").write_text(json.dumps(RECIPE))
    return root


@pytest.fixture(scope="module")
def run(place, twins):
    """The run on the folder, in PyTorch."""
    status, out, error = twins(*FOLDER, "--out", "run", folder=place)
    assert status == 0, error
    return place / "run"


def losses(folder):
    return [(row["loss"], row["test_loss"], row["test_accuracy"]) for row in runlog.read_log(folder)]


def test_a_folder_and_an_npz_are_the_same_run(place, run, twins):
    change = ("--set", "data=photos.npz", "--set", "classes=3", "--out", "memory")
    assert twins("train", "mine.json", *change, folder=place).returncode == 0
    assert losses(run) == losses(place / "memory")
    one, other = (weights.read_state(folder / "last.safetensors") for folder in (run, place / "memory"))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_both_frameworks(place, run, twins):
    assert twins(*FOLDER, "--backend", "tf", "--out", "keras", folder=place).returncode == 0
    for ours, theirs in zip(losses(run), losses(place / "keras"), strict=True):
        assert np.allclose(ours, theirs, rtol=ladder.TOLERANCES["float64"]["losses"], atol=0)


def test_processes_and_a_change_of_framework_leave_the_run_as_it_is(place, run, twins):
    options = ("--workers", "2", "--out", "parts")
    assert twins("train", "mine.json", "--epochs", "1", *options, folder=place).returncode == 0
    assert twins("train", "--resume", "parts", "--epochs", "2", "--workers", "1", folder=place).returncode == 0
    assert losses(place / "parts") == losses(run)


def test_classes_go_with_the_run(place, run, twins):
    spec = json.loads((run / "network.json").read_text())
    assert spec["classes"] == WORDS and spec["layers"][-1]["out"] == 3
    picture = "photos/val/screw_m4/001.png"
    done = twins("predict", "run/network.json", picture, "--weights", "run/best.safetensors", "--json", folder=place)
    assert {row["name"] for row in json.loads(done.stdout)["images"][0]["top"]} == {*WORDS}
    done = twins(
        "evaluate", "run/network.json", "--weights", "run/best.safetensors", "--data", "photos", "--json", folder=place
    )
    found = json.loads(done.stdout)
    assert found["tested"] == 9 and found["top1"]["PyTorch"] == runlog.best_epoch(runlog.read_log(run))["test_accuracy"]


def test_what_is_held_out_is_not_trained_on(place, twins):
    options = ("--data", "photos/train", "--holdout", "0.34", "--set", "epochs=1", "--out", "held")
    done = twins(*FOLDER, *options, folder=place)
    assert done.returncode == 0, done.stderr
    (row,) = runlog.read_log(place / "held")
    assert row["tested_on"] == "train" and row["step"] == 3  # 12 of 18 images, in batches of 4
    network = (
        "held/network.json",
        "--weights",
        "held/last.safetensors",
        "--data",
        "photos/train",
        "--holdout",
        "0.34",
        "--json",
    )
    found = json.loads(twins("evaluate", *network, folder=place).stdout)
    assert found["tested"] == 6 and found["top1"]["PyTorch"] == row["test_accuracy"]


def test_boxes_of_a_folder_of_classes(place, run, twins):
    common = ("locate", "--data", "photos", "--weights", "run/best.safetensors")
    status, out, error = twins(*common, "run/network.json", "--out", "drawn", folder=place)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and "photos: there is no boxes.json in it, so the boxes cannot be scored." in error
    assert [row["class"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3  # of val, as they are in folders, not as predicted
    assert len([*(place / "drawn").iterdir()]) == 9 and {len(row["box"]) for row in rows if row["box"]} <= {4}
    done = twins(*common, "run/network.json", "--class", "washer", "--json", folder=place)
    assert {row["class"] for row in json.loads(done.stdout)["images"]} == {2} and "sweep" not in done.stdout
    status, out, error = twins(*common, "run/network.json", "--plot", "x.png", folder=place)
    assert status == 2 and "--plot draws errors, for which photos needs a boxes.json" in error and out == ""


def test_validation_apart_from_test(place, twins):
    """The best epoch is chosen on x_val, or on what is held out; the test images wait for the end."""
    arrays = dict(np.load(place / "photos.npz"))
    np.savez(place / "three.npz", **arrays | {"x_val": arrays["x_train"][::3], "y_val": arrays["y_train"][::3]})
    common = ("train", "mine.json", "--set", "classes=3")
    for options, tested_on, count in (
        (("--data", "three.npz", "--set", "epochs=1"), "val", 6),
        (("--data", "photos.npz", "--holdout", "0.34", "--set", "epochs=1"), "train", 6),
    ):
        out = f"apart-{tested_on}"
        status, said, error = twins(*common, *options, "--out", out, folder=place)
        assert status == 0, error
        (row,) = runlog.read_log(place / out)
        assert (
            row["tested_on"] == tested_on
            and "  val loss" in said
            and f"Best validation accuracy {row['test_accuracy']:.2%}" in said
        )
        network = (f"{out}/network.json", "--weights", f"{out}/best.safetensors", "--json")
        found = json.loads(twins("evaluate", *network, "--data", options[1], folder=place).stdout)
        assert found["tested"] == 9
        assert f"Test accuracy of that epoch {found['top1']['PyTorch']:.2%}, on 9 images that the run has not used" in said
        held = json.loads(twins("evaluate", *network, "--data", options[1], "--holdout", "0.34", folder=place).stdout)
        assert held["tested"] == count and held["top1"]["PyTorch"] == row["test_accuracy"]
    done = twins(*common, "--data", "three.npz", "--set", "epochs=1", "--out", "apart-json", "--json", folder=place)
    assert json.loads(done.stdout)["test"].keys() == {"loss", "accuracy", "top5", "miou"}


MISTAKES = {
    "one class": (("--data", "one"), "one: has one class, a; expected at least 2"),
    "another number": (("--set", "classes=5"), "photos: has the 3 classes screw_m3, screw_m4, washer, but 'classes' is 5"),
    "no train": (("--data", "test_only"), "test_only: has test but no train, so there is nothing to train on"),
    "no such folder": (("--data", "photo"), "no data set is called 'photo'"),
    "of two sizes": (
        ("--set", 'preprocessing={"resize": 9, "channels": "RGB", "scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        "photos: pictures of different sizes need a 'crop' in the preprocessing of tiny_3_classes",
    ),
    "too few": (("--set", "batch=19"), "'batch' is 19, but photos has 18 images to train on"),
    "a share of 1": (("--holdout", "1"), "'holdout' is 1.0, expected a number above 0, below 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, place, twins):
    for path in ("one/a/1.png", "one/a/2.png", "test_only/test/a/1.png", "test_only/test/b/1.png"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / path)
    options, words = MISTAKES[mistake]
    status, out, error = twins(*FOLDER, *options, "--out", "mistake", folder=place)
    assert (status, out) == (2, "") and words in error.replace("\n", " ") and not (place / "mistake").exists()


def test_files_that_are_not_pictures_are_named(place, tmp_path, twins):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    for name in ("train/washer/phone.heic", "val/washer/notes.txt"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    status, out, error = twins(*FOLDER, "--epochs", "1", "--out", "run", folder=tmp_path)
    named = "skipped 2 files without a picture's extension: train/washer/phone.heic, val/washer/notes.txt."
    assert status == 0 and f"photos: {named}" in " ".join(out.split()), error


def test_an_unreadable_picture_ends_the_run_unless_it_is_skipped(place, twins):
    path = place / "photos" / "train" / "washer" / "002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:80])
    try:
        done = twins(*FOLDER, "--out", "broken", folder=place)
        assert done.returncode == 2 and "washer/002.png: not an image" in done.stderr.replace("\n", " ")
        done = twins(*FOLDER, "--skip-unreadable", "--out", "skipped", folder=place)
        assert done.returncode == 0 and runlog.read_log(place / "skipped")[0]["unreadable"] == 1
        assert "skipped: photos/train/washer/002.png: not an image" in done.stderr.replace("\n", " ")
        (place / "photos/train/washer/005.png").rename(place / "5.png")
        (place / "photos/train/washer/005.png").touch()
        done = twins(*FOLDER, "--skip-unreadable", "--out", "two", folder=place)
        assert done.returncode == 2 and "2 of 27 images cannot be read, more than 5%: photos/train/washer/00" in done.stderr
    finally:
        path.write_bytes(whole)
        if (place / "5.png").exists():
            (place / "5.png").rename(place / "photos/train/washer/005.png")

"""`twins evaluate`: scores against scikit-learn's and by hand, what it writes, and which images of a folder it takes."""

import csv
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from shared import networks, weights
from shared.checks import Error
from twins import evaluation, plots, predict
from twins.predict import Evaluation

SPEC = {
    "name": "brightest",
    "input": [1, 2, 3],
    "preprocessing": {"channels": "L", "scale": 1, "mean": [0], "std": [1]},
    "layers": [
        {"name": "flat", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 6, "out": 6},
    ],
}
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
RIGHT, WRONG = [0, 0, 1, 1, 1, 2, 3, 4], [(0, 1), (2, 0), (5, 0)]  # labels; (label, brightest pixel)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A network that names the brightest of six pixels, and a folder of 11 pictures, of which it gets 8 right."""
    (tmp_path / "net.json").write_text(json.dumps(SPEC))
    state = {"fc.weight": np.eye(6, dtype=np.float32) / 50, "fc.bias": np.zeros(6, np.float32)}
    weights.save_state(tmp_path / "w.safetensors", state)
    for number, (label, pixel) in enumerate([*((label, label) for label in RIGHT), *WRONG]):
        pixels = np.arange(6, dtype=np.uint8)
        pixels[pixel] = 100 + 10 * number
        path = tmp_path / "folder" / NAMES[label] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(2, 3)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = "evaluate net.json --weights w.safetensors --workers 0"


def test_scores(files, twins):
    status, out, error = twins(f"{COMMAND} --data folder --backend both --json")
    assert (status, error) == (0, "")
    found = json.loads(out)
    assert found["top1"] == {"PyTorch": 8 / 11, "Keras": 8 / 11} and (found["tested"], found["same_predictions"]) == (11, 11)
    assert found["top5"] == {"PyTorch": 10 / 11, "Keras": 10 / 11}  # of a fox taken for an ant, the fox pixel is second
    rows = {row["name"]: row for row in found["classes"]}
    assert [*rows] == NAMES and rows["ant"] == {"class": 0, "name": "ant", "images": 3, "precision": 2 / 4, "recall": 2 / 3}
    assert rows["fox"]["precision"] is None and rows["fox"]["recall"] == 0 and rows["elk"]["precision"] == 1


def test_what_is_printed_and_written(files, twins):
    status, out, error = twins(f"{COMMAND} --data folder --out report")
    assert (status, error) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][-2:] == ["11", "images"] and ["accuracy,", "top", "1", "72.73%"] in lines and ["fox", "1", "0.00%"] in lines
    assert sorted(path.name for path in (files / "report").iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "mistakes.png",
    ]
    matrix = list(csv.reader((files / "report" / "confusion.csv").open()))
    assert matrix[0] == ["class", *NAMES] and matrix[1] == ["ant", "2", "1", "0", "0", "0", "0"]
    classes = list(csv.DictReader((files / "report" / "classes.csv").open()))
    assert classes[5] == {"class": "5", "name": "fox", "images": "1", "precision": "", "recall": "0.0"}
    for name in ("confusion.png", "mistakes.png"):
        pixels = np.asarray(Image.open(files / "report" / name).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_folder_that_cannot_be_written_is_said_before_the_work(files, twins, monkeypatch):
    monkeypatch.setattr(predict, "evaluate", lambda *arguments: pytest.fail("the network has run"))
    (files / "report").write_text("mine")
    status, out, error = twins(f"{COMMAND} --data folder --out report")
    assert (status, out, error) == (2, "", "twins: report: is a file; --out takes a folder\n")
    status, out, error = twins(f"{COMMAND} --data folder --out report/inside")
    assert (status, out, error) == (2, "", "twins: report/inside: cannot be created: report is a file\n")


def test_names_are_drawn_as_they_are_printed(files, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "printable", lambda name: drawn.append(name) or "x")
    plots.draw_confusion(np.eye(2, dtype=int), ["a\x1b[2J", "$b$"], files / "c.png")
    plots.draw_sheet([np.zeros((4, 4, 3), np.uint8)], ["a:\nb\x1b"], files / "s.png")
    assert {"a\x1b[2J", "$b$", "a:", "b\x1b"} <= {*drawn}


def test_the_worst_mistakes_are_those_that_it_is_surest_of():
    top = [np.array([[1, 0], [0, 1], [0, 1], [1, 0]])]
    found = Evaluation(np.array([4, 5, 6, 9]), np.array([0, 0, 1, 0]), top, [np.array([0.6, 0.99, 0.7, 0.9])])
    assert evaluation.mistakes(found) == [(9, 0, 1, 0.9), (6, 1, 0, 0.7), (4, 0, 1, 0.6)]
    assert len(evaluation.mistakes(found, 1)) == 1
    assert evaluation.confusion(found, 3).tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_an_unreadable_picture(files, twins):
    broken = files / "folder" / "ant" / "00.png"
    broken.write_bytes(broken.read_bytes()[:50])
    status, out, error = twins(f"{COMMAND} --data folder --json")
    assert (status, out) == (2, "") and "00.png: not an image that Pillow can read" in error
    status, out, error = twins(f"{COMMAND} --data folder --json --skip-unreadable")
    found = json.loads(out)
    assert status == 0 and "skipped: folder/ant/00.png: not an image" in error and found["tested"] == 10
    assert found["top1"] == {"PyTorch": 7 / 10} and len(found["unreadable"]) == 1


def test_which_images_of_a_folder(files):
    assert len(predict.labelled_images("folder", SPEC).x) == 11
    (files / "parts" / "val").mkdir(parents=True)
    (files / "folder").rename(files / "parts" / "test")
    for name in NAMES:
        path = files / "parts" / "val" / name / "0.png"
        path.parent.mkdir()
        Image.new("L", (3, 2)).save(path)
    assert len(predict.labelled_images("parts", SPEC).x) == 11
    (files / "parts" / "test").rename(files / "folder")
    assert len(predict.labelled_images("parts", SPEC).x) == 6
    with pytest.raises(Error, match="folder: class dog has 1 picture, expected at least 2"):
        predict.labelled_images("folder", SPEC, holdout=0.5)


def test_labels_are_the_networks(files):
    """By their names where it has those, whatever the order; else in order, if there are as many."""
    spec = networks.load(SPEC | {"classes": ["elk", "fox", "ant", "bee", "cat", "Dog, hound"]})
    expected = [2, 2, 2, 3, 3, 3, 4, 4, 5, 0, 1]
    assert predict.labelled_images("folder", spec).y.tolist() == expected
    assert predict.labelled_images("folder", SPEC).y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5]
    imagenet = networks.class_numbers(networks.load("resnet18"))
    assert imagenet["n01440764"] == imagenet["tench"] == imagenet["tinca tinca"] == 0
    assert imagenet[networks.class_key("Golden_Retriever")] == 207 and "crane" not in imagenet  # a bird and a machine
    (files / "folder" / "fox").rename(files / "folder" / "gnu")
    with pytest.raises(Error, match="^folder: has 6 classes, resnet18 has 1,000, none of which is called 'cat'"):
        predict.labelled_images("folder", networks.load("resnet18"))


def test_one_misspelt_name_is_refused(files):
    """In the order of names, all would be other classes."""
    spec = networks.load(SPEC | {"classes": ["elk", "fox", "ant", "bee", "cat", "hound"]})
    with pytest.raises(Error, match="^folder: has 6 classes, brightest has 6, none of which is called 'dog'"):
        predict.labelled_images("folder", spec)


def test_an_accent_may_be_a_character_of_its_own(files):
    names = ["\u00e9lan", "fox", "ant", "bee", "cat", "dog"]
    (files / "folder" / "elk").rename(files / "folder" / "e\u0301lan")
    assert networks.class_key("e\u0301lan") == names[0]
    spec = networks.load(SPEC | {"classes": names})
    assert sorted(predict.labelled_images("folder", spec).y.tolist()) == [0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5]


def test_letters_that_the_font_has_not_are_no_warnings(files):
    with warnings.catch_warnings(action="error"):
        plots.draw_confusion(np.eye(2, dtype=int), ["\u732b", "\u72ac"], files / "c.png")

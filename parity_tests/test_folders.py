"""Pictures in folders: which are found, with which labels, and what is said to folders that are not in order."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from shared import data, folders
from shared.checks import Error


def picture(path, value=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def pictures(root, *names):
    for name in names:
        picture(root / name)
    return root


@pytest.fixture
def root(tmp_path):
    """Five cats and three dogs."""
    for number in range(5):
        picture(tmp_path / "cat" / f"{number}.png", number)
    for number in range(3):
        picture(tmp_path / "dog" / f"{number}.jpg", 100)
    return tmp_path


def test_a_folder_a_class(root):
    found = folders.read(root)
    assert found.classes == ["cat", "dog"] and found.parts.keys() == {""} and found.skipped == []
    pictures, labels = found.parts[""]
    assert pictures.names == [*(f"cat/{n}.png" for n in range(5)), *(f"dog/{n}.jpg" for n in range(3))]
    assert labels.tolist() == [0] * 5 + [1] * 3 and len(pictures) == 8
    assert [image[0, 0, 0] for image in pictures[1:3]] == [1, 2]
    assert [image.shape for image in pictures[np.array([4, 7])]] == [(4, 6, 3)] * 2
    assert pictures[np.array([4, 7])].paths() == [str(root / "cat/4.png"), str(root / "dog/2.jpg")]


def test_what_else_is_in_a_folder(root):
    for name in ("cat/notes.txt", "cat/.hidden.png", "dog/Thumbs.db", "README.md"):
        (root / name).write_text("x")
    picture(root / "cat" / "more" / "5.JPEG")
    picture(root / ".trash" / "6.png")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "x.png").symlink_to(root / "cat" / "0.png")
    found = folders.read(root)
    assert found.classes == ["cat", "dog", "elsewhere"]
    assert found.skipped == ["cat/notes.txt", "dog/Thumbs.db"]  # of those in the folders of classes
    assert "cat/more/5.JPEG" in found.parts[""].pictures.names
    assert found.parts[""].labels.tolist() == [0] * 6 + [1] * 3 + [2]


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "validation"), ("train", "val", "test"), ("val",)])
def test_train_and_others(names, tmp_path):
    for name in names:
        for label in ("cat", "dog"):
            picture(tmp_path / name / label / f"{name}.png")
    found = folders.read(tmp_path)
    assert [*found.parts] == sorted((folders.PARTS[name.lower()] for name in names), key=[*found.parts].index)
    for name in names:
        pictures, labels = found.parts[folders.PARTS[name.lower()]]
        assert pictures.names == [f"{name}/cat/{name}.png", f"{name}/dog/{name}.png"] and labels.tolist() == [0, 1]


def test_tests_without_labels_are_left_out(tmp_path):
    for name in ("train/a/1.png", "val/a/1.png", "test/1.png"):
        picture(tmp_path / name)
    assert folders.read(tmp_path).parts.keys() == {"train", "val"}


@pytest.mark.parametrize("name", ["train", "Val"])
def test_a_class_may_be_called_as_a_part(name, tmp_path):
    pictures(tmp_path, "bus/1.png", f"{name}/1.png", "tram/1.png")
    found = folders.read(tmp_path)
    assert found.classes == sorted(["bus", name, "tram"]) and found.parts.keys() == {""}


def test_pictures_to_test_on_are_no_class(tmp_path):
    pictures(tmp_path, "cat/1.png", "dog/1.png", "test/1.png")
    with pytest.raises(Error, match="has no labels: test has no folders of classes.*; a class cannot be called test"):
        folders.read(tmp_path)


def test_what_stands_beside_parts_is_no_class(tmp_path):
    pictures(tmp_path, "notes/1.png", "test/1.png", "train/a/1.png")
    assert folders.read(tmp_path).classes == ["a"] and folders.read(tmp_path).parts.keys() == {"train"}


def test_a_name_that_is_no_text(tmp_path):
    picture(tmp_path / os.fsdecode(b"caf\xe9") / "1.png")
    with pytest.raises(Error, match=r"the name of class 'caf\\udce9' is not UTF-8; rename it") as error:
        folders.read(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_the_word_digits_is_the_data_set_and_a_path_is_the_folder(root, monkeypatch):
    pictures(root, "digits/a/1.png", "digits/a/2.png", "digits/b/1.png", "digits/b/2.png")
    monkeypatch.chdir(root)
    assert data.load("digits").classes is None and data.load("./digits").classes == ["a", "b"]


def test_what_is_held_out_of_arrays():
    whole = data.load("digits")
    assert whole.tested_on == "test" and whole.unseen is None
    apart = data.load("digits", 0.1)
    assert apart.tested_on == "train" and np.array_equal(apart.unseen.x, whole.x_test)
    assert len(apart.x_train) + len(apart.x_test) == len(whole.x_train)
    assert [*np.bincount(apart.y_test)] == [round(0.1 * count) for count in np.bincount(whole.y_train)]
    assert np.array_equal(data.load("digits", 0.1).x_test, apart.x_test)


@pytest.mark.parametrize("share", [20, 1, 0, -0.1, float("nan")])
def test_a_share_that_is_none(share, root):
    with pytest.raises(Error, match=f"'holdout' is {share}, expected a number above 0, below 1"):
        data.load("digits", share)
    for name in ("train/a/1.png", "val/a/1.png"):
        picture(root / "parts" / name)
    with pytest.raises(Error, match=f"parts: 'holdout' is {share}, expected a number above 0, below 1"):
        data.load(root / "parts", share)


def test_the_share_that_is_held_out(root):
    labels, classes = folders.read(root).parts[""].labels, {0: "cat", 1: "dog"}
    rest, held = folders.held_out(labels, classes, 0.4)
    assert np.bincount(labels[held]).tolist() == [2, 1] and np.bincount(labels[rest]).tolist() == [3, 2]
    assert sorted([*rest, *held]) == list(range(8))
    assert np.array_equal(folders.held_out(labels, classes, 0.4)[1], held)
    assert len({tuple(folders.held_out(labels, classes, 0.4, seed)[1]) for seed in range(9)}) > 3
    more = folders.held_out(np.array([*labels, 1]), classes, 0.4)[1]  # another dog: cats do not care
    assert [place for place in more if place < 5] == [place for place in held if place < 5]
    with pytest.raises(Error, match="class fox has 1 picture, expected at least 2"):
        folders.held_out(np.array([0] * 4 + [1] * 3 + [2]), {**classes, 2: "fox"}, 0.2)


def written(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_csv(root):
    rows = [("dog/0.jpg", "old dog"), ("cat/1.png", "cat"), ("cat/0.png", "cat")]
    found = folders.read(written(root / "labels.csv", ("file", "label"), *rows))
    assert found.classes == ["cat", "old dog"] and found.parts[""].labels.tolist() == [0, 0, 1]
    assert [os.path.relpath(path, root) for path in found.parts[""].pictures.paths()] == ["cat/1.png", "cat/0.png", "dog/0.jpg"]
    numbers = [("label", "file", "Split"), (10, "dog/0.jpg", "train"), (2, "cat/1.png", "train")]
    numbers += [(10, "dog/1.jpg", "val"), (2, "cat/2.png", "val")]
    found = folders.read(written(root / "numbers.csv", *numbers))
    assert len(found.classes) == 11 and found.classes[10] == "10" and found.parts.keys() == {"train", "val"}
    assert dict(zip(found.parts["val"].pictures.names, found.parts["val"].labels.tolist(), strict=True)) == {
        "dog/1.jpg": 10,
        "cat/2.png": 2,
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none.csv", "none.csv: there is no such file"),
        (lambda root: (root / "empty").mkdir() or root / "empty", "empty: has no pictures; expected a folder for each class"),
        (lambda root: root / "cat", "cat: has pictures but no folders; expected a folder for each class"),
        (lambda root: (root / "fox").mkdir() or root, "fox: has no pictures; add some of class fox, or remove the folder"),
        (lambda root: picture(root / "Cat" / "0.png") or root, "the classes Cat and cat differ only in case"),
        (lambda root: picture(root / "cat" / "0.PNG") or root, "the files cat/0.PNG and cat/0.png differ only in case"),
        (lambda root: pictures(root, "a/b/c/1.png", "a/d/1.png"), "a: has only folders, b, d, so the classes could"),
        (lambda root: (root / "cat" / "loop").symlink_to(root / "cat") or root, "loop: is a link to a folder that contains it"),
        (lambda root: pictures(root, "train/a/1.png", "training/a/1.png"), "has both train"),
        (lambda root: pictures(root, "train/a/1.png", "train/b/1.png", "val/a/1.png"), "val has no pictures of b, of which"),
        (lambda root: written(root / "x.csv", ("name", "label"), ("a", "b")), "expected the columns file and label, and a"),
        (lambda root: written(root / "x.csv", ("file", "label"), ("a.png", "b")), "x.csv: there is no file .*a.png$"),
        (lambda root: written(root / "x.csv", ("file", "label"), ("cat/0.png", "")), "line 2: expected a file and a label"),
        (lambda root: written(root / "x.csv", ("file", "label"), *[("cat/0.png", "a")] * 2), "cat/0.png is in it more than"),
        (
            lambda root: written(root / "x.csv", "file label split".split(), ("cat/0.png", 1, "train"), ("cat/1.png", 1, "")),
            "line 3: expected a file, a label and train, val or test",
        ),
        (lambda root: written(root / "x.csv", ("file", "label"), ("cat/0.png", 10**9)), "label 1,000,000,000, expected"),
        (lambda root: written(root / "x.csv", ("file", "label"), (), (), ("cat/0.png", "")), "line 4: expected a file and a"),
        (
            lambda root: written(root / "x.csv", "file label split".split(), ("cat/0.png", 1, "val"), ("cat/1.png", 2, "test")),
            "x.csv: val has no pictures of 2, of which test has",
        ),
        (lambda root: pictures(root, "a b/c/1.png", "a b/d/1.png"), "pass --data '.*a b', or move its pictures up"),
    ],
)  # fmt: skip
def test_folders_that_are_not_in_order(make, words, root):
    with pytest.raises(Error, match=words):
        folders.read(make(root))


def test_a_folder_without_permission(root):
    (root / "cat").chmod(0)
    try:
        if os.access(root / "cat", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(Error, match="cat: cannot be read: Permission denied"):
            folders.read(root)
    finally:
        (root / "cat").chmod(0o700)

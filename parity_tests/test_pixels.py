"""Training on pixels in both frameworks, the scores of pixels by hand and by scikit-learn, and `twins segment`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix

import torch_impl

# isort: split
import keras_impl
from shared import interpolation, masks, networks, recipes, weights
from shared.checks import RunError
from shared.masks import IGNORED, VOID, Coding
from twins import datasets, ladder, pairs, runlog, scattered, segmentation, training

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import experiment  # noqa: E402
import segmentation as benchmark  # noqa: E402

TOLERANCES = ladder.TOLERANCES["float64"]
NETWORK = {
    "name": "dense",
    "input": [3, 16, 16],
    "preprocessing": {"channels": "RGB", "scale": 255, "mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]},
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 6, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 6},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 6, "out": 8, "stride": 2},
        {"name": "layer2", "type": "basic", "in": 8, "out": 8, "dilation": 2, "shortcut": "none"},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 5},
    ],
}
WEIGHTS = [0.5, 1.0, 2.5]
RECIPE = {
    "name": "tiles",
    "network": "net.json",
    "head": "segmentation",
    "data": "tiles",
    "classes": ["dark", "red", "green"],
    "batch": 3,
    "epochs": 3,
    "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "rates": {"seg.*": 10}},
    "schedule": {"name": "poly"},
    "augmentation": {"scale": [0.75, 1.5], "window": 16, "flip": True},
    "class_weights": WEIGHTS,
    "precision": "float64",
}
TRAIN = ("train", "mine.json", "--workers", "0")
SEGMENT = ("segment", "run/network.json", "--weights", "run/best.safetensors", "--workers", "0")


def tile(seed):
    """(picture, mask) of 18x21 pixels: a red and a green patch on black, and a few pixels that do not count."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((18, 21), np.uint8)
    for number in (1, 2):
        top, left = generator.integers(0, 10, 2)
        mask[top : top + 9, left : left + 9] = number
    colours = np.array([[30, 30, 30], [220, 40, 40], [40, 220, 40]])
    picture = (colours[mask] + generator.integers(-20, 20, (*mask.shape, 3))).clip(0, 255).astype(np.uint8)
    mask[generator.random(mask.shape) < 0.1] = VOID
    return picture, mask


def save_tiles(folder, numbers):
    for number in numbers:
        for kind, pixels in zip(("images", "masks"), tile(number), strict=True):
            path = folder / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pixels")
    save_tiles(root / "tiles" / "train", range(6))
    save_tiles(root / "tiles" / "val", range(6, 9))
    (root / "net.json").write_text(json.dumps(NETWORK))
    (root / "mine.json").write_text(json.dumps(RECIPE))
    return root


@pytest.fixture(scope="module")
def run(place, twins):
    """A run in PyTorch: (folder, what was printed)."""
    status, out, error = twins(*TRAIN, "--out", "run", folder=place)
    assert status == 0, error
    return place / "run", out


def test_twenty_steps():
    spec = networks.segmentation(networks.load(NETWORK), 3)
    optimizer = RECIPE["optimizer"] | {"learning_rate": 0.01}
    generator = np.random.default_rng(0)
    pair = []
    for package in (torch_impl, keras_impl):
        pair.append(package.Engine(package.build(spec, dtype="float64"), optimizer, class_weights=WEIGHTS))
    recipe = {"steps": 20, "optimizer": optimizer, "schedule": RECIPE["schedule"]}
    for step in range(20):
        labels = generator.choice([0, 1, 2, IGNORED], (4, 16, 24))
        if step == 7:
            labels[:] = IGNORED
        images, rate = generator.standard_normal((4, 3, 16, 24)), recipes.learning_rate(recipe, step, 1)
        (ours, right), (theirs, as_right) = (engine.step(images, labels, rate) for engine in pair)
        assert right == as_right
        assert ours == theirs == 0 if step == 7 else ladder.relative(ours, theirs) <= TOLERANCES["losses"]
    worst = ladder.largest(ladder.states(pair))
    assert worst.value <= TOLERANCES["weights"], worst
    assert ladder.largest(ladder.gradients(pair, images, labels)).value <= TOLERANCES["gradients"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_pytorchs(smoothing):
    spec = {"name": "identity", "input": [3, 4, 4], "layers": [{"name": "up", "type": "upsample", "scale": 1}]}
    generator = np.random.default_rng(1)
    logits, labels = generator.standard_normal((2, 3, 4, 4)), generator.choice([0, 1, 2, IGNORED], (2, 4, 4))
    options = {"weight": torch.tensor(WEIGHTS, dtype=torch.float64), "label_smoothing": smoothing, "ignore_index": IGNORED}
    expected = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), **options))
    engine = keras_impl.Engine(keras_impl.build(spec, dtype="float64"), label_smoothing=smoothing, class_weights=WEIGHTS)
    assert abs(engine.loss(logits, labels) - expected) <= 1e-14 * expected


def test_poly():
    recipe = {"epochs": 10, "optimizer": {"learning_rate": 0.5}, "schedule": {"name": "poly"}}
    expected = [0.5, 0.5, 0.5 * 0.9**0.9, 0.5 * 0.1**0.9]
    assert np.allclose([recipes.learning_rate(recipe, step, 7) for step in (0, 6, 7, 69)], expected, rtol=1e-14)
    other = {"steps": 10, "optimizer": {"learning_rate": 0.5}, "schedule": {"name": "poly", "power": 2, "warmup": 2}}
    assert np.allclose([recipes.learning_rate(other, step, 7) for step in (0, 1, 2, 6)], [0.25, 0.5, 0.5, 0.125])


def test_what_a_run_says(run):
    rows = runlog.read_log(run[0])
    assert len(rows) == 3 and all(0 <= row["test_miou"] <= 1 for row in rows) and rows[0]["tested_on"] == "val"
    best = max(rows, key=lambda row: row["test_miou"])
    assert training.step_of(run[0] / "best.safetensors") == best["step"]
    assert f"Best validation mIoU {max(row['test_miou'] for row in rows):.2%}" in run[1]


def test_a_run_switched_within_an_epoch_ends_where_the_other_does(place, run, monkeypatch):
    monkeypatch.chdir(place)
    recipe = recipes.load(RECIPE)
    spec, data = training.prepare(recipe)
    done = []
    first = training.run(torch_impl.trainer(spec, recipe), recipe, spec, data, "half", stop=lambda: done[-1].step >= 3)
    for now in first:
        done.append(now)
    half = training.read_checkpoint("half")
    assert half.step == 3  # of two an epoch
    engine = keras_impl.trainer(half.spec, half.recipe)
    engine.load(half.arrays, half.step)
    assert list(training.run(engine, half.recipe, half.spec, data, "other", half))[-1].step == 6
    rows, others = runlog.read_log(run[0]), runlog.read_log("other")
    assert [row["framework"] for row in others] == ["PyTorch", "Keras", "Keras"]
    assert runlog.largest_difference(rows, others) <= TOLERANCES["losses"]
    assert [row["test_miou"] for row in rows] == [row["test_miou"] for row in others]
    assert np.allclose([row["accuracy"] for row in rows], [row["accuracy"] for row in others], rtol=1e-12)
    ends = [training.read_checkpoint(folder).arrays for folder in ("run", "other")]
    worst = ladder.largest(ladder.between(*ends))
    assert worst.value <= TOLERANCES["weights"], worst


def test_an_epoch_cut_short_and_completed(place, monkeypatch):
    monkeypatch.chdir(place)
    rows = {}
    for name, lengths in (("whole", (4,)), ("cut", (3, 4))):
        checkpoint = None
        for steps in lengths:
            rest = {key: value for key, value in RECIPE.items() if key != "epochs"}
            recipe = recipes.load(rest | {"steps": steps, "schedule": {"name": "constant"}})
            spec, data = training.prepare(recipe)
            engine = torch_impl.trainer(spec, recipe)
            if checkpoint:
                engine.load(checkpoint.arrays, checkpoint.step)
            for _ in training.run(engine, recipe, spec, data, name, checkpoint):
                pass
            checkpoint = training.read_checkpoint(name)
        rows[name] = runlog.read_log(name)[-1]
    assert np.isclose(rows["whole"]["accuracy"], rows["cut"]["accuracy"], rtol=1e-12)
    assert np.isclose(rows["whole"]["loss"], rows["cut"]["loss"], rtol=1e-12)


def test_both_frameworks_make_one_run(place, run, twins):
    status, _, error = twins(*TRAIN, "--backend", "tf", "--out", "keras", folder=place)
    assert status == 0, error
    rows, others = runlog.read_log(run[0]), runlog.read_log(place / "keras")
    assert runlog.largest_difference(rows, others) <= TOLERANCES["losses"]
    for key in ("test_miou", "test_accuracy", "accuracy"):
        assert [row[key] for row in rows] == [row[key] for row in others]


def test_the_pictures_that_a_run_has_not_used(place, twins):
    """At its end: the measure that chose the epoch, as `twins segment` finds it."""
    for part, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 14))):
        save_tiles(place / "three" / part, numbers)
    status, out, error = twins(*TRAIN, "--data", "three", "--epochs", "1", "--out", "apart", folder=place)
    assert status == 0, error
    files = ("apart/network.json", "--weights", "apart/best.safetensors", "--workers", "0")
    found = json.loads(twins("segment", *files, "--data", "three", "--json", folder=place).stdout)
    assert found["miou"]["PyTorch"] != found["pixel_accuracy"]["PyTorch"]
    assert f"Test mIoU of that epoch {found['miou']['PyTorch']:.2%}, on 5 images that the run has not used" in out


def test_from_the_weights_of_a_classifier(place, twins):
    weights.save_state(place / "classifier.safetensors", weights.initial(NETWORK, seed=5))
    status, out, error = twins(*TRAIN, "--init", "classifier.safetensors", "--epochs", "1", "--out", "init", folder=place)
    assert status == 0, error
    assert "seg.weight, seg.bias freshly initialised" in out


def random_masks(seed, classes=4):
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, classes, (2, 9, 11)).astype(np.uint8)
    truth[generator.random(truth.shape) < 0.2] = VOID
    return truth, predicted


def test_the_matrix_is_scikit_learns():
    for seed in range(5):
        truth, predicted = random_masks(seed)
        counts = truth != VOID
        matrix = segmentation.confusion(truth, predicted, 4)
        assert matrix.dtype == np.int64
        assert np.array_equal(matrix, confusion_matrix(truth[counts], predicted[counts], labels=range(4)))


def test_scores_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, VOID, 1, VOID]], np.uint8)
    predicted = np.array([[0, 1, 1, 1], [0, 1, 3, 2]])
    found = segmentation.scores(segmentation.confusion(truth, predicted, 5))
    # 0: 2 of 3; 1: 2 of 4; 2: predicted where nothing counts; 3: predicted once and nowhere true; 4: nowhere
    assert found.iou == [2 / 3, 2 / 4, None, 0.0, None]
    assert found.miou == (2 / 3 + 2 / 4 + 0) / 3 and found.pixel_accuracy == 4 / 6
    ignored = segmentation.scores(segmentation.confusion(np.full((2, 2), VOID), np.zeros((2, 2), int), 3))
    assert ignored == (None, None, [None, None, None])


def test_cross_entropy():
    maps, (truth, _) = np.random.default_rng(0).standard_normal((2, 4, 9, 11)), random_masks(0)
    both = np.stack([truth, np.full_like(truth, VOID)])
    expected = F.cross_entropy(torch.from_numpy(maps), torch.from_numpy(masks.labels(both)), reduction="sum")
    assert np.isclose(segmentation.cross_entropy(maps, both), float(expected), rtol=1e-14)
    assert segmentation.cross_entropy(maps[1:], both[1:]) == 0


def test_logits_are_resized_by_half_pixel_centres():
    maps = np.random.default_rng(0).standard_normal((3, 5, 7))
    expected = F.interpolate(torch.from_numpy(maps[None]), (8, 4), mode="bilinear", align_corners=False)[0].numpy()
    assert np.allclose(segmentation.resized(maps, 8, 4), expected, rtol=1e-13)
    assert segmentation.resized(maps, 5, 7) is maps and interpolation.interpolation_matrix(5, 5).shape == (5, 5)


class Stub:
    """An engine whose logits are the channels of what it gets."""

    framework, rank, processes = "none", 0, 1

    def __init__(self):
        self.shapes = []

    def predict(self, batch):
        self.shapes.append(batch.shape[2:])
        return batch

    def total(self, array):
        return array


STUB = {
    "name": "stub",
    "input": [3, 4, 4],
    "preprocessing": {"channels": "RGB", "scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]},
    "layers": [
        {"name": "pool", "type": "avg_pool", "kernel": 4, "stride": 4},
        {"name": "seg", "type": "conv", "in": 3, "out": 3, "kernel": 1},
        {"name": "up", "type": "upsample", "scale": 4},
    ],
}


def test_padding_scales_and_mirrored_pictures():
    pixels, engine = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8), Stub()
    (plain,) = segmentation.logits([engine], STUB, pixels)
    assert engine.shapes == [(8, 12)] and np.array_equal(plain, pixels.transpose(2, 0, 1))
    (both,) = segmentation.logits([engine], STUB, pixels, flip=True)
    assert np.array_equal(both, plain)
    engine.shapes.clear()
    (several,) = segmentation.logits([engine], STUB, pixels, (0.5, 1, 1.5))
    assert engine.shapes == [(4, 4), (8, 12), (12, 16)] and several.shape == plain.shape
    small = np.asarray(Image.fromarray(pixels).resize((4, 3), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    large = np.asarray(Image.fromarray(pixels).resize((13, 9), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    expected = (segmentation.resized(small * 1.0, 6, 9) + plain + segmentation.resized(large * 1.0, 6, 9)) / 3
    assert np.allclose(several, expected, rtol=1e-12)
    lines = segmentation.sizes(STUB, [(6, 9)], (0.5, 1), True)
    assert [line.split()[0] for line in lines] == ["Pictures", "Logits", "Padded", "Averaged"]
    assert segmentation.sizes(STUB, [(8, 12)]) == ["Pictures and masks keep their size."]


def test_measured_in_pieces_is_the_same_as_at_once():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 255, (5, 8, 12, 3)).astype(np.uint8)
    y = generator.choice(np.array([0, 1, 2, VOID], np.uint8), (5, 8, 12))
    reader = pairs.Reader(STUB, Coding(VOID, None))
    found = segmentation.measure([Stub(), Stub()], x, y, reader)
    expected = segmentation.confusion(y, x.argmax(-1), 3)
    assert all(np.array_equal(matrix, expected) for matrix in found.matrices)
    assert found.same == (y != VOID).sum() == expected.sum() and found.places == [*range(5)] and found.sizes == [(8, 12)]


@pytest.mark.parametrize(
    "row, expected",
    [
        ([0] * 5 + [1] * 5, [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]),  # three pixels on either side
        ([0] * 5 + [VOID] + [1] * 4, [0] * 10),  # where the edge is, is not known
        ([0] * 3 + [VOID] + [0] * 2 + [1] * 4, [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]),
        ([2] * 10, [0] * 10),
    ],
)
def test_the_band_around_an_edge(row, expected):
    mask = np.tile(np.array(row, np.uint8), (4, 1))
    for each in (mask, mask.T):
        found = segmentation.boundary(each)
        assert np.array_equal(found if each is mask else found.T, np.tile(np.array(expected, bool), (4, 1)))


def test_the_band_around_a_corner_is_square():
    mask = np.zeros((9, 9), np.uint8)
    mask[4, 4] = 1  # its four neighbours are at the edge too
    rows, columns = np.abs(np.indices(mask.shape) - 4)
    expected = ((rows <= 3) & (columns <= 2)) | ((rows <= 2) & (columns <= 3))
    assert np.array_equal(segmentation.boundary(mask), expected)
    assert segmentation.boundary(mask, 1).sum() == 5


def test_near_edges_the_score_is_of_those_pixels_alone():
    pixels = np.zeros((1, 8, 12, 3), np.uint8)
    pixels[..., 0] = 2  # the network says class 0
    pixels[:, :, 6:, 1] = 3  # or class 1
    pixels[:, 0, 0, 2] = 9  # and in a corner class 2
    y = np.zeros((1, 8, 12), np.uint8)
    y[:, :, 5:] = 1
    found = segmentation.measure([Stub()], pixels, y, pairs.Reader(STUB, Coding(VOID, None)))
    (whole,), (near,) = found.matrices, found.at_edges
    assert near.tolist() == [[24, 0, 0], [8, 16, 0], [0, 0, 0]] and whole.sum() == 96 and whole[0, 2] == 1
    results = segmentation.summary(found, ["PyTorch"], [*"abc"], STUB, [1], False)
    assert results["boundary_miou"] == {"PyTorch": (24 / 32 + 16 / 24) / 2} and results["boundary_pixels"] == 48


def test_segment_pictures(place, run, twins):
    pictures = [str(place / "tiles" / "val" / "images" / f"{number}.png") for number in (6, 7)]
    status, out, error = twins(*SEGMENT, *pictures, "--out", "found", "--backend", "both", folder=place)
    assert (status, error) == (0, "")
    assert "21x18" in out and "100.00%" in out and "Padded to multiples of 4" in out and "found/6_overlay.png" in out
    numbers, colours, overlay = (
        np.asarray(Image.open(place / "found" / f"6_{kind}.png")) for kind in ("classes", "colours", "overlay")
    )
    assert numbers.shape == (18, 21) and set(np.unique(numbers)) <= {0, 1, 2}
    assert np.array_equal(colours, segmentation.coloured(numbers, masks.palette([*"abc"])))
    assert np.array_equal(overlay, (tile(6)[0].astype(int) + colours) // 2)


def test_segment_a_folder(place, run, twins):
    status, out, error = twins(*SEGMENT, "--data", "tiles", "--backend", "both", "--out", "report", "--json", folder=place)
    assert (status, error) == (0, "")
    found = json.loads(out)
    best = max(row["test_miou"] for row in runlog.read_log(run[0]))
    assert abs(found["miou"]["PyTorch"] - best) < 0.02  # float32 here, float64 in the run
    assert found["miou"]["PyTorch"] == found["miou"]["Keras"] and found["same"] == found["pixels"]
    truth = np.concatenate([tile(number)[1].ravel() for number in (6, 7, 8)])
    assert [row["pixels"] for row in found["classes"]] == np.bincount(truth)[:3].tolist()
    assert found["files"] == ["report/confusion.csv", "report/sheet.png"] and found["pictures"] == 3
    status, out, _ = twins(*SEGMENT, "--data", "tiles", "--scales", "0.5,1,1.5", "--flip", folder=place)
    assert status == 0
    for words in ("mIoU near edges", "pixel accuracy", "Pictures resized by 0.5, 1, 1.5 (bicubic).", "half-pixel", "mirrored"):
        assert words in out


@pytest.mark.parametrize(
    "words, message",
    [
        (("--data", "nowhere"), "nowhere: there is no such folder"),
        (("--data", "tiles", "--scales", "0.5;1"), "--scales is 0.5;1, expected numbers above 0"),
        (("--data", "tiles", "--ignore", "2"), "has the number 255, expected 0 to 2, or 2 to ignore it"),
        (("tiles/val/images/6.png",), "--out is missing"),
        (("tiles/val/images/6.png", "tiles/val/masks/6.png", "--out", "x"), "another picture is also called 6"),
        ((), "there is nothing to segment"),
    ],
)
def test_segment_says_what_is_wrong(words, message, place, run, twins):
    status, _, error = twins(*SEGMENT, *words, folder=place)
    assert status == 2 and message in error and error.count("\n") == 1


def test_segment_looks_for_the_pictures_before_it_reads_the_weights(twins, tmp_path):
    words = ("segment", "drn_d_22_seg", "none.png", "--weights", "none.pth", "--out", "x")
    status, _, error = twins(*words, folder=tmp_path)
    assert status == 2 and error == "twins: none.png: there is no such file\n"


def test_segment_what_a_training_has_held_out(place, run, twins, monkeypatch):
    save_tiles(place / "whole", range(4))
    status, out, error = twins(*SEGMENT, "--data", "whole", "--holdout", "0.5", "--json", folder=place)
    assert (status, error) == (0, "") and json.loads(out)["pictures"] == 2


def test_segment_goes_on_without_what_cannot_be_read(place, run, twins):
    save_tiles(place / "few", range(2))
    broken = place / "few" / "images" / "0.png"
    broken.write_bytes(b"")
    words = (*SEGMENT, "--data", "few")
    status, out, error = twins(*words, folder=place)
    assert (status, out) == (2, "") and "0.png: " in error and error.count("\n") == 1
    status, out, error = twins(*words, "--skip-unreadable", "--json", folder=place)
    assert status == 0 and json.loads(out)["pictures"] == 1 and error.startswith("twins: skipped: few/images/0.png: ")
    (place / "few" / "images" / "1.png").write_bytes(b"")
    status, out, error = twins(*words, "--skip-unreadable", folder=place)
    assert (status, out) == (2, "") and "none of the pictures can be read" in error


def test_segment_ends_where_no_picture_is_at_fault(place, run, twins, monkeypatch):
    def lost(*arguments):
        raise RunError("JAX: its process has ended")

    monkeypatch.setattr(segmentation, "segment", lost)
    pictures = [str(place / "tiles" / "val" / "images" / f"{number}.png") for number in (6, 7)]
    status, _, error = twins(*SEGMENT, *pictures, "--out", "lost", folder=place)
    assert (status, error) == (1, "twins: JAX: its process has ended\n")


def test_a_run_that_diverges_says_so(place, twins):
    words = ("--set", "optimizer.learning_rate=1e300", "--set", "batch=6", "--epochs", "2")
    status, _, error = twins(*TRAIN, *words, "--out", "diverged", folder=place)
    assert status == 1 and "the loss on the test images after epoch 1 is nan" in error and error.count("\n") == 1


def test_segment_needs_a_network_of_pixels(place, twins):
    status, _, error = twins("segment", "net.json", "--weights", "w", "--data", "tiles", folder=place)
    assert status == 2 and "dense classifies whole images, not pixels: train it with the key head" in error


def test_the_experiment_with_runs_that_are_done(tmp_path, monkeypatch, capsys):
    """Untrained networks, on few pictures: what is measured is what `twins segment` measures, and nothing is trained again."""
    made = scattered.make(datasets.load_data(), train=8, test=6)
    monkeypatch.setattr(scattered, "make", lambda digits: made)
    changes, arrays = ["data=scattered_digits", "steps=1"], {}
    sums = {"loss": 2.3, "accuracy": 0.1, "test_loss": 2.3, "test_accuracy": 0.1, "test_miou": 0.1, "images_per_sec": 9.0}
    for name in ("resnet10_small", "drn_a_10_small"):
        own = [f"network={name}", "seed=0", *changes]
        recipe = recipes.load(recipes.changed(recipes.load("scattered_seg"), own))
        spec = recipes.network(recipe)
        history = [{"epoch": 1, "step": 1, "learning_rate": 0.1, **sums, "framework": "PyTorch"}]
        about = {"recipe": recipe, "spec": spec, "step": 1, "sums": [0.0, 0, 0, 0.0], "history": history}
        (tmp_path / f"{name}-0").mkdir()
        arrays[name] = torch_impl.trainer(spec, recipe).state()
        weights.save_state(tmp_path / f"{name}-0" / "last.safetensors", arrays[name], about)
    monkeypatch.setattr(experiment, "train", lambda *arguments: pytest.fail("it was trained again"))
    benchmark.main(tmp_path, "scattered_seg", list(arrays), 1, 1, changes)
    out = capsys.readouterr().out
    assert out == (tmp_path / "segmentation-scattered_seg.txt").read_text() and "near edges" in out
    plain, dilated = json.loads((tmp_path / "segmentation-scattered_seg.json").read_text())["runs"]
    assert (plain["stride"], plain["gridding"], dilated["stride"]) == (32, None, 8) and 0 <= dilated["gridding"] <= 1
    engine = torch_impl.Engine(torch_impl.build(spec))
    engine.load(arrays["drn_a_10_small"])
    data = pairs.load(recipe)
    found = segmentation.measure([engine], data.x_test, data.y_test, pairs.Reader(spec, data.coding))
    assert dilated["miou"] == segmentation.scores(found.matrices[0]).miou
    assert dilated["boundary_miou"] == segmentation.scores(found.at_edges[0]).miou

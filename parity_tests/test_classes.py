"""Another number of classes or channels, and the names of classes: seen in files, asked for, trained, in both frameworks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import keras_impl
import shared
import torch_impl
from shared import images, networks, published, reading, recipes, renaming, shapes, weights
from twins import checkpoints, runs
from twins.ladder import TOLERANCES, relative

TOLERANCE = TOLERANCES["float64"]["activations"]

TINY = {
    "name": "tiny",
    "title": "Tiny",
    "input": [3, 8, 8],
    "preprocessing": {"channels": "BGR", "scale": 255, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 4, "out": 8, "stride": 2, "repeat": 1},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 5},
    ],
}
HEAD = [{"name": "avgpool", "type": "global_avg_pool"}, {"name": "flatten", "type": "flatten"}]


def chain(*layers, out=("linear", 8)):
    """A spec of some layers with a classifier of ten classes after them."""
    kind, features = out
    last = {"name": "fc", "type": kind, "in": features, "out": 10} | ({"kernel": 1} if kind == "conv" else {})
    return {"name": "chain", "input": [3, 8, 8], "layers": [*layers, last]}


BASIC = {"name": "layer1", "type": "basic", "in": 3, "out": 8, "stride": 2, "repeat": 2}
PREACTIVATED = {"name": "layer1", "type": "preact_basic", "in": 3, "out": 8, "stride": 2}
BRANCHES = {"name": "mixed", "type": "inception", "in": 3, "out": 8, "branches": [[2], [2, 2], [2, 2], [2]]}
NORM = {"name": "bn", "type": "batch_norm", "in": 3}
CONV = {"name": "conv", "type": "conv", "in": 3, "out": 8, "kernel": 3}
AFTER = {"name": "after", "type": "batch_norm", "in": 10}
FIRST = {  # what a network can begin with, and end with
    "a convolution": TINY,
    "a block": chain(BASIC, *HEAD),
    "branches": chain(BRANCHES, *HEAD),
    "a flattened image": chain({"name": "flatten", "type": "flatten"}, {"name": "fc1", "type": "linear", "in": 192, "out": 8}),
    "a pool": chain({"name": "pool", "type": "max_pool", "kernel": 2}, CONV, *HEAD),
}
NORMS_FIRST = {"a norm": chain(NORM, CONV, *HEAD), "a norm in a block": chain(PREACTIVATED, *HEAD)}
LAST = {
    "a convolution": chain(CONV, HEAD[0], out=("conv", 8)),
    "a norm": chain(CONV, out=("conv", 8)) | {"layers": [*chain(CONV, out=("conv", 8))["layers"], AFTER, *HEAD]},
    "only a layer": chain({"name": "flatten", "type": "flatten"}, out=("linear", 192)),
}
ALL = FIRST | NORMS_FIRST | {f"at the end {name}": spec for name, spec in LAST.items()}


def blank(spec):
    """Arrays of a network's names and shapes that need no memory."""
    return {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.weights(shapes.layers(spec)).items()}


def trained(spec, seed=7):
    """A state with numbers of its own in every array, in float64."""
    generator = np.random.default_rng(seed)
    state = weights.randomised(weights.initial(spec, seed), seed)
    return {name: array + generator.uniform(0, 0.1, array.shape) for name, array in state.items()}


def saved(path, spec, seed=7):
    weights.save_state(path, trained(spec, seed))
    return path


def logits(spec, state, x):
    """Of images (count, channels, height, width), in both frameworks, in float64."""
    ours, theirs = (package.build(spec, dtype="float64") for package in (torch_impl, keras_impl))
    torch_impl.load(ours, state)
    keras_impl.load(theirs, state)
    return outputs(ours, theirs, x)


def outputs(ours, theirs, x):
    with torch.no_grad():
        return [ours.eval()(torch.from_numpy(x)).numpy(), np.asarray(theirs(x.transpose(0, 2, 3, 1), training=False))]


def test_a_variant():
    named = TINY | {"parameters": shapes.parameters(shapes.layers(TINY)), "classes": list("abcde"), "weights": "us tiny"}
    both = networks.variant(shared.load(named), 37, 1)
    assert (both["name"], both["title"]) == ("tiny_37_classes_1_channel", "Tiny, 37 classes, 1 channel")
    assert "parameters" not in both and "classes" not in both and both["weights"] == "us tiny"
    assert both["preprocessing"] == {"channels": "L", "scale": 255, "mean": [0.5], "std": [0.25]}
    assert networks.variant(named, channels=1)["classes"] == list("abcde")
    assert networks.variant(both, channels=3)["preprocessing"]["channels"] == "RGB"
    assert "preprocessing" not in networks.variant(named, channels=4)
    grey = networks.variant(shared.load("resnet50"), channels=1)["preprocessing"]
    assert (grey["mean"], grey["std"], grey["crop"]) == ([0.449], [0.226], 224)
    assert networks.variant(named, 5, 3) is named
    for options in ({"classes": 0}, {"channels": -1}, {"classes": "37"}):
        with pytest.raises(shared.Error, match="(classes|channels) is .*, expected a whole number of at least 1"):
            networks.variant(named, **options)


@pytest.mark.parametrize("place", ALL)
def test_a_variant_is_seen_in_its_arrays(place):
    spec = ALL[place]
    both = [] if place == "at the end only a layer" else [(37, 1), (1, 4)]  # of which one number has to be known
    for classes, channels in (*both, (None, 2), (37, None)):
        variant = networks.variant(spec, classes, channels)
        rows = shapes.layers(variant)
        assert variant["input"][0] == (channels or 3) and networks.outputs(variant) == (classes or networks.outputs(spec))
        assert rows[-1].shape[0] == networks.outputs(variant)
        found = renaming.match_variant(blank(variant), spec)
        assert found.whole == found.spec == variant
    same = renaming.match_variant(blank(spec), spec)
    assert same.whole is spec and same.spec is spec


def test_a_variant_of_every_network_is_seen_in_its_arrays():
    for name in shared.names():
        if name.startswith(("resnet110_", "preact_resnet1")):  # as shorter ones
            continue
        spec = shared.load(name)
        variant = networks.variant(spec, 37, 4 - spec["input"][0])
        assert renaming.match_variant(blank(variant), spec).whole == variant, name


def test_it_is_seen_among_networks(monkeypatch):
    some = ["drn_a_18", "googlenet", "lenet", "resnet18", "resnet18_cifar100", "resnet18_gray", "resnet20", "vgg11"]
    monkeypatch.setattr(networks, "names", lambda: some)
    arrays = {f"module.{n}": a for n, a in blank(networks.variant(shared.load("resnet18"), 37, 1)).items()}
    assert [spec["name"] for spec in renaming.guess_networks(arrays)] == ["drn_a_18", "resnet18"]
    # One that fits as it is comes before any variant.
    assert [spec["name"] for spec in renaming.guess_networks(blank(shared.load("resnet18_gray")))] == ["resnet18_gray"]


def test_a_network_with_the_files_channels_comes_before_one_without(tmp_path, monkeypatch):
    paths = [tmp_path / "colour.json", tmp_path / "grey.json"]
    for path, spec in zip(paths, (TINY, networks.variant(TINY, channels=1)), strict=True):
        path.write_text(json.dumps(spec))
    monkeypatch.setattr(networks, "names", lambda: paths)
    for channels, name in ((3, "tiny"), (1, "tiny_1_channel")):
        found = renaming.guess_networks(blank(networks.variant(TINY, 37, channels)))
        assert [spec["name"] for spec in found] == [name]


@pytest.mark.parametrize("head", ["fc", "head", "classifier.1", "linear"])
def test_it_is_seen_under_a_prefix_and_with_another_head(head):
    variant = networks.variant(TINY, 37)
    arrays = {("" if n.startswith("fc.") else "backbone.") + n.replace("fc.", f"{head}."): a for n, a in blank(variant).items()}
    assert renaming.match_variant(arrays, TINY).spec == variant


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("head", ["fc", "projection_head"])
def test_a_head_of_several_layers_is_no_classifier(head, prefix):
    arrays = {prefix + n: a for n, a in blank(TINY).items() if not n.startswith("fc.")}
    for layer, out in ((f"{head}.0", 8), (f"{head}.2", 6)):
        arrays |= {f"{layer}.weight": np.zeros((out, 8)), f"{layer}.bias": np.zeros(out)}
    for missing in ("", f"{head}.2.bias"):
        found = renaming.match_variant({name: array for name, array in arrays.items() if name != missing}, TINY)
        assert found.whole is TINY and found.spec["name"] == "tiny_notop"


def test_what_does_not_fit_is_said_of_the_variant():
    arrays = blank(networks.variant(TINY, 37, 1))
    del arrays["bn1.bias"]
    with pytest.raises(shared.Error) as error:
        renaming.match_variant(arrays, TINY)
    assert str(error.value).splitlines()[1:] == ["  missing: bn1.bias 4"]


@pytest.mark.parametrize("place", FIRST)
def test_grey_from_colour_and_back(place, tmp_path):
    """A network for grey images on one channel is that for colour on the channel three times, to the ladder's tolerance."""
    spec = FIRST[place]
    grey = networks.variant(spec, channels=1)
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8))
    for before, after in ((spec, grey), (grey, spec)):
        fitted = reading.fit_weights(saved(tmp_path / "x", before), spec)
        assert fitted.whole == before
        state, notes = reading.adapted(fitted, after)
        assert state.keys() == fitted.state.keys() and len(notes) == 1
        expected = logits(before, fitted.state, np.repeat(x, before["input"][0], 1))
        found = logits(after, state, np.repeat(x, after["input"][0], 1))
        for one in expected:
            for other in found:
                assert relative(one, other) <= TOLERANCE
    assert notes[0].startswith("The file is for grey images: ") and notes[0].endswith(" a third for each colour.")


def test_grey_pictures(tmp_path):
    """Where the three means and deviations are the same, a grey picture gives what it gives shown as RGB."""
    picture = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1), np.uint8)
    grey = networks.variant(TINY, channels=1)
    fitted = reading.fit_weights(saved(tmp_path / "x", TINY), TINY)
    batches = [images.preprocess(picture, spec, "float64") for spec in (TINY, grey)]
    assert batches[0].shape[1] == 3 and batches[1].shape[1] == 1
    one, other = logits(TINY, fitted.state, batches[0])[0], logits(grey, reading.adapted(fitted, grey)[0], batches[1])[1]
    assert relative(one, other) <= TOLERANCE


@pytest.mark.parametrize("place", NORMS_FIRST)
def test_what_cannot_become_grey_starts_anew(place, tmp_path):
    spec = NORMS_FIRST[place]
    state, _ = reading.adapted(reading.fit_weights(saved(tmp_path / "x", spec), spec), networks.variant(spec, channels=1))
    assert not any(name.startswith(("bn.", "layer1.bn1.")) for name in state) and "fc.weight" in state
    four, notes = reading.adapted(reading.fit_weights(tmp_path / "x", spec), networks.variant(spec, channels=4))
    assert notes == [] and len(four) < len(state)


# In Python


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_build_in_both(source, head, tmp_path, monkeypatch):
    if source == "imagenet":
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        published.folder().mkdir(parents=True)
        place = published.folder() / published.FILES["resnet18"]
        torch.save({name: torch.from_numpy(array) for name, array in trained(TINY).items()}, place)
        spec, source = TINY | {"weights": "torchvision resnet18"}, "imagenet"
    else:
        spec, source = TINY, saved(tmp_path / "x", TINY)
    ours, theirs = (
        package.build(spec, dtype="float64", classes=37, channels=1, weights=source, head=head)
        for package in (torch_impl, keras_impl)
    )
    assert ours.spec == theirs.spec and ours.spec["name"] == ("tiny_37_classes_1_channel" if head else "tiny_1_channel_notop")
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8))
    one, other = outputs(ours, theirs, x)
    assert one.shape == ((2, 37) if head else (2, 8, 4, 4))
    assert relative(one, other if head else other.transpose(0, 3, 1, 2)) <= TOLERANCE
    state = torch_impl.state(ours)
    expected = trained(TINY)
    assert np.array_equal(state["layer1.0.conv1.weight"], expected["layer1.0.conv1.weight"])
    assert np.allclose(state["conv1.weight"], expected["conv1.weight"].sum(1, keepdims=True), rtol=1e-15)
    if head:
        assert np.array_equal(state["fc.weight"], weights.initial(ours.spec)["fc.weight"])


@pytest.mark.parametrize("package", [torch_impl, keras_impl])
def test_build_takes_what_the_file_has(package, tmp_path):
    path, variant = tmp_path / "x", networks.variant(TINY, 37, 1)
    state = trained(variant)
    weights.save_state(path, state)
    for options in ({}, {"classes": 37}, {"channels": 1}, {"classes": 37, "channels": 1}):
        net = package.build(TINY, dtype="float64", weights=path, **options)
        loaded = package.state(net)
        assert net.spec == variant and all(np.array_equal(loaded[name], array) for name, array in state.items())
    assert package.build(TINY, classes=3, seed=2).spec["name"] == "tiny_3_classes"
    body = {name: array for name, array in state.items() if not name.startswith("fc.")}
    weights.save_state(path, body | {"projector.0.weight": np.zeros((4, 8))})
    with pytest.raises(shared.Error, match="x: has no classifier, which tiny needs; pass classes, or head=False"):
        package.build(TINY, weights=path)
    net = package.build(TINY, weights=path, classes=4, dtype="float64", seed=3)
    assert np.array_equal(package.state(net)["fc.weight"], weights.initial(net.spec, 3)["fc.weight"])
    assert np.array_equal(package.state(net)["conv1.weight"], body["conv1.weight"])
    assert set(package.state(package.build(TINY, weights=path, head=False))) == set(body)
    with pytest.raises(shared.Error, match="x: the weights do not fit the network"):
        package.build("resnet20", weights=path, classes=4)


# The commands


@pytest.fixture
def files(tmp_path):
    """A folder with the spec, weights with 37 classes and one channel, and a picture."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    weights.save_state(tmp_path / "w", {n: a.astype("float32") for n, a in trained(networks.variant(TINY, 37, 1)).items()})
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / "p.png")
    return tmp_path


NOTE = "The file has 37 classes and 1 channel: this is tiny_37_classes_1_channel."
NAME = "tiny_37_classes_1_channel"


def test_predict(files, twins):
    done = twins("predict tiny.json --weights w p.png --backend both --json", folder=files)
    assert done.returncode == 0 and done.stderr.splitlines()[0] == NOTE
    found = json.loads(done.stdout)
    assert found["network"] == NAME and found["images"][0]["difference"] < 1e-5
    said = twins("predict tiny.json --weights w p.png --backend torch --classes 37 --channels 1", folder=files)
    assert said.returncode == 0 and NOTE not in said.stderr


@pytest.mark.parametrize(
    "command",
    [
        "predict tiny.json p.png --weights w",
        "export tiny.json --weights w",
        "compare tiny.json --weights w",
        "convert w x.pth --network tiny.json",
    ],
)
def test_a_conflict_is_one_error(command, files, twins):
    before = sorted(files.iterdir())
    for option, words in (
        ("--classes 10", "has 37 classes, but --classes is 10"),
        ("--channels 3", "takes images of 1 channel, but --channels is 3"),
    ):
        done = twins(f"{command} {option}", folder=files)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"twins: w: {words}\n")
    assert sorted(files.iterdir()) == before


def test_predict_takes_pictures_of_one_or_three_channels(files, twins):
    saved(files / "four", networks.variant(TINY, channels=4))
    done = twins("predict tiny.json --weights four p.png", folder=files)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "twins: four: tiny_4_channels takes 4 channels, pictures have 1 or 3"


def test_export_and_compare(files, twins):
    done = twins("export tiny.json --weights w --fold --out x.keras --out x.pth", folder=files)
    assert done.returncode == 0 and done.stderr.splitlines()[0] == NOTE
    assert json.loads((files / "x.json").read_text())["name"].startswith(NAME)
    done = twins("export tiny.json --weights w", folder=files)
    assert done.returncode == 0 and (files / f"{NAME}.safetensors").exists()
    done = twins("compare tiny.json --weights w --steps 0 --json", folder=files)
    assert done.returncode == 0 and done.stderr.splitlines()[0] == NOTE
    assert json.loads(done.stdout)["network"] == NAME and json.loads(done.stdout)["passed"]
    done = twins("compare tiny.json --classes 3 --steps 0 --json", folder=files)
    assert json.loads(done.stdout)["network"] == "tiny_3_classes"


def test_convert(files, twins):
    chain = ("w", "x.keras", "y.weights.h5", "z.pth", "z.safetensors")
    for first, second in zip(chain, chain[1:], strict=False):
        done = twins(f"convert {first} {second} --network tiny.json --json", folder=files)
        assert done.returncode == 0
        found = json.loads(done.stdout)
        assert found["networks"] == [NAME] and found["notes"] == [NOTE] and found["destination"] == second
        assert len(found["moves"]) == len(weights.read_state(files / "w")) and found["ignored"] == []
    before, after = weights.read_state(files / "w"), weights.read_state(files / "z.safetensors")
    assert all(np.array_equal(before[name], array) for name, array in after.items())
    name, shape = "conv1.weight", [4, 1, 3, 3]
    assert found["moves"][0] == {"from": name, "shape": shape, "to": name, "new_shape": shape}
    options = "--network tiny.json --classes 37 --channels 1 --json"
    done = twins(f"convert w --draft-map m.json {options}", folder=files)
    assert json.loads(done.stdout) == {"destination": "m.json", "names": 22, "uncertain": 0, "ignored": 0}


def test_convert_says_in_json_what_it_ignored(files, twins):
    torch.save(torch_impl.build(TINY).state_dict() | {"n_averaged": torch.tensor(3)}, files / "x.pth")
    found = json.loads(twins("convert x.pth y.safetensors --network tiny.json --json", folder=files).stdout)
    assert {"from": "n_averaged", "shape": [], "reason": "counter of averaged weights, which nothing reads"} in found["ignored"]
    assert len(found["moves"]) + len(found["ignored"]) == len(torch.load(files / "x.pth"))


# Training

RECIPE = {
    "name": "start", "network": "tiny.json", "data": "d.npz", "batch": 4, "steps": 1, "precision": "float64",
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
}  # fmt: skip


@pytest.fixture
def recipe(files, monkeypatch):
    """A recipe for grey images of 37 classes in the folder with the weights, which is the current folder."""
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 255, (37, 8, 8, 1), np.uint8), np.arange(37)
    np.savez(files / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (files / "start.json").write_text(json.dumps(RECIPE))
    saved(files / "colour", TINY)
    monkeypatch.chdir(files)
    return "start.json"


def start(recipe, *changes):
    with runs.start(recipe, None, None, list(changes), None, "torch") as beginning:
        return beginning


def test_training_follows_the_file_where_the_data_have_its_numbers(recipe):
    beginning = start(recipe, "init=w")
    assert beginning.spec["name"] == NAME and beginning.notes == [NOTE]
    assert set(beginning.pretrained) == set(weights.read_state("w"))
    # What the recipe says comes first; data of other numbers than the file's leave the network as it is.
    assert start(recipe, "init=w", "classes=40").spec["name"] == "tiny_40_classes_1_channel"
    x, y = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 5
    np.savez("d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    beginning = start(recipe, "init=w")
    assert beginning.spec["name"] == "tiny" and "fc.weight" not in beginning.pretrained
    assert beginning.pretrained["conv1.weight"].shape == (4, 3, 3, 3)
    assert beginning.notes[-1] == "The file is for grey images: conv1.weight a third for each colour."


@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_training_starts_from_weights_for_colour(backend, recipe, twins):
    options = f"--init colour --set channels=1 --set classes=37 --backend {backend} --out run"
    done = twins(f"train {recipe} {options}", folder=".")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "The file is for colour images: conv1.weight summed over the colours."
    assert lines[2] == "20 arrays from colour; fc.weight, fc.bias freshly initialised."
    assert json.loads((runs.Path("run") / "network.json").read_text())["input"] == [1, 8, 8]


def test_training_chooses_among_weights_in_a_file(recipe):
    tensors = {
        key: {n: torch.from_numpy(a) for n, a in trained(TINY, seed).items()} for key, seed in (("model", 1), ("ema", 2))
    }
    torch.save(tensors, "both.pth")
    options = ["init=both.pth", "channels=1", "classes=37"]
    for changes, seed, words in (([], 1, "raw weights"), (["weights_key=ema"], 2, "averaged")):
        beginning = start(recipe, *options, *changes)
        assert np.array_equal(beginning.pretrained["bn1.bias"], trained(TINY, seed)["bn1.bias"])
        assert words in beginning.notes[0]
    with pytest.raises(shared.Error, match="'weights_key' selects weights in a file, which --init must name"):
        start(recipe, "weights_key=ema", "channels=1", "classes=37")


# Names of classes


def test_names_in_a_spec(tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee, honey bee\ncat\nübel\nn01440764 tench\n\n", encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY | {"classes": "names.txt"}))
    spec = shared.load(tmp_path / "tiny.json")
    assert spec["classes"] == ["ant", "bee, honey bee", "cat", "übel", "n01440764 tench"]
    assert networks.class_names(spec) == ["ant", "bee, honey bee", "cat", "übel", "tench"]
    assert networks.class_names(shared.load(TINY | {"classes": list("abcde")})) == list("abcde")
    assert networks.headless(spec).get("classes") is None


@pytest.mark.parametrize(
    "classes, words",
    [
        (
            "names.txt",
            "'classes' is a list, which has 2 names, but the network has 5 outputs: list as many, or delete the line",
        ),
        ("none.txt", "'classes' is \"none.txt\", but there is no file .*none.txt; expected camvid or cifar10 or"),
        ("gap.txt", "'classes' is \"gap.txt\", whose line 2 is empty; expected one class name per line"),
        ("empty.txt", "whose line 1 is empty"),
        ("latin.txt", "which cannot be read: .*utf-8"),
        ("sub", "but there is no file"),
        (["a", ""], "'classes' is .*, expected .*or a list of names"),
        ([], "'classes' is"),
        (3, "'classes' is 3, expected"),
    ],
)
def test_names_that_are_wrong(classes, words, tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee")
    (tmp_path / "gap.txt").write_text("ant\n\nbee\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xfcbel\n" * 5)
    (tmp_path / "sub").mkdir()
    (tmp_path / "tiny.json").write_text(json.dumps(TINY | {"classes": classes}))
    with pytest.raises(shared.Error, match=f"tiny.json: .*{words}"):
        shared.load(tmp_path / "tiny.json")


def test_a_copied_spec_says_what_to_delete():
    copied = shared.load("resnet20")
    copied = copied | {"layers": [*copied["layers"][:-1], copied["layers"][-1] | {"out": 37}]}
    with pytest.raises(
        shared.Error, match='"parameters" is 269,722, but the layers have .*: correct it, or delete the line "para'
    ):
        shared.load(copied)
    del copied["parameters"]
    words = "'classes' is \"cifar10\", which has 10 names, but the network has 37 outputs: list as many, or delete the line"
    with pytest.raises(shared.Error, match=words):
        shared.load(copied)
    del copied["classes"]
    assert networks.outputs(shared.load(copied)) == 37


@pytest.mark.parametrize(
    "changes, names",
    [
        ({}, "cifar10"),
        ({"data": "folder/cifar10_5k.npz"}, "cifar10"),
        ({"data": "mnist"}, None),  # which has ten other classes than the network has names for
        ({"data": "x.npz"}, None),
        ({"data": "x.npz", "network": shared.load("resnet20") | {"classes": list("abcdefghij")}}, list("abcdefghij")),
        ({"data": "fashion_mnist"}, "fashion_mnist"),
        ({"classes": [[3], [5, 6]]}, ["cat", "dog, frog"]),
        ({"classes": [[3], [5, 6]], "data": "x.npz"}, None),
        ({"classes": [[n] for n in reversed(range(10))]}, networks.class_names({"classes": "cifar10"})[::-1]),
        ({"classes": [[1], [0], *([n] for n in range(2, 10))], "data": "x.npz"}, None),
        ({"classes": ["yes", "no"]}, ["yes", "no"]),
        ({"classes": 7}, None),
        ({"classes": 100, "data": "cifar100"}, "cifar100"),
    ],
)
def test_names_of_what_is_trained(changes, names):
    recipe = recipes.load("cifar10_resnet20")
    assert recipes.network(recipes.load(recipe | changes)).get("classes") == names


def test_the_lists_of_known_data_sets():
    from torchvision import datasets

    assert networks.class_names({"classes": "fashion_mnist"}) == datasets.FashionMNIST.classes
    names = networks.class_names({"classes": "cifar100"})
    assert len(names) == 100 and names == sorted(names)


def test_training_stores_names_that_predict_prints(recipe, twins):
    names = [f"screw_m{number}" for number in range(37)]
    runs.Path("names.txt").write_text("\n".join(names))
    for value in (names, "names.txt", "none.txt", "one.txt"):
        runs.Path("one.txt").write_text("alone")
        changed = RECIPE | {"classes": value, "channels": 1}
        if value in ("none.txt", "one.txt"):
            with pytest.raises(shared.Error, match="recipe 'start': 'classes' is .*, (but there is no file none.txt|expected)"):
                recipes.load(changed)
        else:
            assert recipes.load(changed)["classes"] == names
    options = "--set channels=1 --set classes=names.txt"
    assert twins(f"train {recipe} --out run {options}", folder=".").returncode == 0
    assert json.loads(runs.Path("run/network.json").read_text())["classes"] == names
    done = twins("predict run/network.json --weights run/last.safetensors p.png", folder=".")
    assert done.returncode == 0 and done.stdout.count("screw_m") == 5
    done = twins("locate run/network.json --weights run/last.safetensors p.png --class screw_m4", folder=".")
    assert json.loads(done.stdout)["name"] == "screw_m4"


# What cannot be read


@pytest.mark.filterwarnings("ignore")
def test_a_sparse_array_that_the_network_has_no_place_for_is_skipped(files):
    tensors = {name: torch.from_numpy(array) for name, array in trained(TINY).items()}
    extra = {"graph.adjacency": torch.eye(3).to_sparse(), "phase": torch.ones(3, dtype=torch.complex64)}
    torch.save({"state_dict": tensors | extra}, files / "x.pth")
    notes = []
    _, state = reading.load_weights(files / "x.pth", TINY, tell=notes.append)
    assert len(state) == len(tensors)
    assert [note.partition(" is ")[0].partition(" holds ")[0] for note in notes] == [
        "Skipped: graph.adjacency",
        "Skipped: phase",
    ]
    report = checkpoints.convert(files / "x.pth", files / "y.pth", str(files / "tiny.json"))
    assert report.notes == notes
    torch.save({"state_dict": tensors | {"bn1.bias": torch.ones(4).to_sparse()}}, files / "x.pth")
    with pytest.raises(shared.Error, match="x.pth: bn1.bias is a sparse tensor, which cannot be read"):
        reading.load_weights(files / "x.pth", TINY)
    with pytest.raises(shared.Error, match="bn1.bias is a sparse tensor, which cannot be read"):
        checkpoints.convert(files / "x.pth", files / "z.pth")

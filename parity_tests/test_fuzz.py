"""Made-up input, by Hypothesis: whatever a spec, a recipe or a file is, it is read right or refused with an `Error`.

The profile "suite" of conftest.py tries the same few inputs in every run, "long" others, and a hundred times as many.
"""

import contextlib
import copy
import io
import json
import math
import pickle
import resource
import struct
import time
import unicodedata
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import shared
import torch_impl

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras_impl
from shared import checks, images, networks, reading, recipes, shapes, spec, weights
from twins import backends, checkpoints, datasets, ladder, runlog, schema, training

FACTOR = settings().max_examples / 100
SECONDS, MEGABYTES = 20, 400  # that an input may take, and all inputs of a test together

TINY = {
    "name": "tiny",
    "input": [1, 6, 6],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 3, "padding": 1},
        {"name": "layer1", "type": "basic", "in": 4, "out": 8, "repeat": 2, "stride": 2},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 10},
    ],
}
RECIPE = {
    "name": "tiny",
    "network": TINY,
    "data": "digits",
    "preprocessing": {"channels": "L", "scale": 255, "mean": [0.5], "std": [0.5]},
    "augmentation": {"pad": 1, "flip": True},
    "batch": 8,
    "epochs": 4,
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    "schedule": {"name": "multi_step", "milestones": [2, 3], "divide_by": 10, "warmup": 1},
    "classes": 10,
    "freeze": ["conv1"],
}

WORDS = [
    "",
    "a",
    "same",
    "conv",
    "../x.json",
    "a.npz",
    "\0",
    "\ud800",
    "\x1b[2J",
    "[bold]",
    "\u202e",
    "é" * 300,
    "1" * 5000,
    "nan",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    10**400,
    -(10**400),
    0.5,
    -0.0,
    1e-320,
    1e308,
    1e999,
    math.nan,
]
WEIRD = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], {"a": {}}, [1, "a"], [[0], [1]], [[0], [0]], [1e999], *WORDS, *NUMBERS]),
    st.sampled_from(NUMBERS),
    st.integers(-5, 40),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(-2, 9), max_size=4),
)


def tries(suite):
    """So many inputs in the suite, and a hundred times as many in the long profile."""
    return settings(max_examples=max(1, round(suite * FACTOR)))


@contextlib.contextmanager
def measured():
    """Fails if what is inside takes too long."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


@pytest.fixture(autouse=True, scope="module")
def memory():
    """Fails if the tests of this file make the process much larger."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    if FACTOR <= 1:  # over thousands of networks the frameworks' own caches grow
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


# Specs that are right


def chance(draw, one_in):
    return draw(st.integers(1, one_in)) == 1


def options(draw, kind, channels):
    """Values for the keys of a type of layer that takes a map of so many channels."""
    widths = st.sampled_from([1, 2, 3, 4, 8])
    out = {"bottleneck": st.sampled_from([4, 8]), "preact_bottleneck": st.sampled_from([4, 8]), "inception_a": st.just(226)}
    branches = draw(st.tuples(*[st.lists(st.integers(1, 3), min_size=n, max_size=n) for n in (1, 2, 2, 1)]))
    values = {
        "in": channels,
        "out": sum(branch[-1] for branch in branches) if kind == "inception" else draw(out.get(kind, widths)),
        "branches": list(branches),
        "kernel": draw(st.integers(1, 5)),
        "stride": draw(st.integers(1, 3)),
        "padding": "same" if kind in spec.BLOCKS else draw(st.sampled_from([0, 1, 2, "same"])),
        "dilation": draw(st.integers(1, 2)),
        "first_dilation": draw(st.integers(1, 2)),
        "repeat": draw(st.integers(1, 2)),
        "size": draw(st.integers(1, 5)),
        "scale": draw(st.integers(1, 4)),
        "width": draw(st.sampled_from([2, 4])),
        "groups": draw(st.integers(1, 2)),
        "rate": draw(st.sampled_from([0, 0.5])),
        "eps": draw(st.sampled_from([1e-5, 1e-3])),
        "momentum": draw(st.sampled_from([0.1, 1])),
        "alpha": 1e-4, "beta": 0.75, "k": 2, "shortcut_scale": 0.5, "residual_scale": 0.5,
        "stride_at": draw(st.sampled_from(["conv1", "conv2"])),
        "activation": draw(st.sampled_from(spec.VALUES["activation"].schema["enum"])),
        "shortcut": draw(st.sampled_from(spec.SHORTCUTS.get(kind, ("pad",)))),
    }  # fmt: skip
    values |= {key: draw(st.booleans()) for key in ("bias", "norm", "ceil", "first_activation")}
    needed, optional = (keys.split() for keys in spec.TYPES[kind])
    return {key: values[key] for key in [*needed, *(key for key in optional if chance(draw, 2))]}


@st.composite
def valid_specs(draw):
    """A chain of layers and blocks that fit: what does not fit is left out."""
    kinds = sorted(set(spec.TYPES) - {"flatten", "linear", "inception_a"}) * 4 + ["inception_a"]
    chain = {"name": "made_up", "input": [draw(st.integers(1, 4)), draw(st.integers(3, 12)), draw(st.integers(3, 12))]}
    chain["layers"] = []
    channels = chain["input"][0]
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        layer = {"name": f"layer{number}", "type": kind, **options(draw, kind, channels)}
        try:
            rows = shapes.layers(shared.load(chain | {"layers": [*chain["layers"], layer]}))
        except shared.Error:
            continue
        chain["layers"].append(layer)
        channels = rows[-1].shape[0]
    if chance(draw, 2) and chain["layers"]:
        shape = shapes.layers(chain)[-1].shape
        chain["layers"].append({"name": "flatten", "type": "flatten"})
        chain["layers"].append({"name": "fc", "type": "linear", "in": math.prod(shape), "out": draw(st.integers(1, 4))})
    assume(chain["layers"])
    return chain


@tries(15)
@given(valid_specs(), st.integers(0, 2**31 - 1))
def test_both_frameworks_build_what_a_spec_says(chain, seed):
    chain = shared.load(chain)
    rows = shapes.layers(chain)
    state = weights.randomised(weights.initial(chain, seed), seed)
    state = {name: array.astype(np.float64) for name, array in state.items()}
    with measured():
        engines = backends.engines((torch_impl, keras_impl), chain, state, "float64")
        x = np.random.default_rng(seed).normal(size=(2, *chain["input"]))
        found = ladder.activations(engines, x)
    assert [(d.name, *d.shapes) for d in found] == [(row.name, row.shape, (*row.shape[1:], row.shape[0])) for row in rows]
    for engine in engines:
        assert {name: array.shape for name, array in engine.state().items()} == shapes.weights(rows)
    assert ladder.first_beyond(found, ladder.TOLERANCES["float64"]["activations"]) is None, found


# Specs and recipes that are wrong


def places(value, path=()):
    """The paths of all values in a JSON value."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


@st.composite
def changed(draw, original):
    """A JSON value in which something was replaced, removed, renamed or repeated."""
    value = copy.deepcopy(draw(original))
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from([path for path in places(value) if path] or [("a",)]))
        parent = value
        for key in outer:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat"]))
        if not isinstance(parent, (dict, list)) or (isinstance(parent, dict) and last not in parent):
            continue
        if how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([*parent, *WORDS, "repeat", "stride", "out"]))] = parent.pop(last)
        elif how == "repeat" and isinstance(parent, list):
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[last]))
        else:
            parent[last] = copy.deepcopy(draw(WEIRD))
    return value


def stored(folder):
    """The JSON files of a folder."""
    names = sorted(path.name for path in folder.glob("*.json"))
    return st.sampled_from(names).map(lambda name: json.loads((folder / name).read_text(encoding="utf-8")))


@tries(150)
@given(changed(st.one_of(st.just(TINY), stored(spec.SPECS))))
def test_a_wrong_spec_is_an_error(chain):
    with measured(), contextlib.suppress(shared.Error):
        loaded = shared.load(chain)
        rows = shapes.layers(loaded)
        assert 0 <= shapes.parameters(rows) <= 2**40 and len(rows) <= 10_000
        assert schema_accepts(loaded)
        networks.headless(loaded)
        networks.class_names(loaded)


def schema_accepts(loaded):
    """Whether the JSON Schema of `twins schema` takes a spec that the loader takes."""
    import jsonschema

    if not hasattr(schema_accepts, "validator"):
        schema_accepts.validator = jsonschema.Draft202012Validator(schema.spec_schema())
    return FACTOR > 1 or len(loaded["layers"]) > 12 or schema_accepts.validator.is_valid(loaded)


@tries(12)
@given(changed(st.just(TINY)))
def test_a_wrong_spec_is_built_or_refused_by_both(chain):
    try:
        rows = shapes.layers(shared.load(chain))
    except shared.Error:
        return
    assume(shapes.parameters(rows) < 1e6 and max(max(row.padded, math.prod(row.shape)) for row in shapes.leaves(rows)) < 1e6)
    refused = []
    for package in (torch_impl, keras_impl):
        try:
            package.build(chain)
        except shared.Error as error:
            assert "has an attribute of that name" in str(error)
            refused.append(package)
    assert len(refused) < 2 or refused  # a name may be taken in one of them alone


@tries(60)
@given(changed(st.one_of(st.just(RECIPE), stored(recipes.RECIPES))))
def test_a_wrong_recipe_is_an_error(recipe):
    with measured(), contextlib.suppress(shared.Error):
        loaded = recipes.load(recipe)
        for step in (0, 1, 17):
            assert recipes.learning_rate(loaded, step, 5) >= 0  # infinite near the largest float: the loss says so


KEYS = [
    *recipes.REQUIRED.split(),
    *recipes.OPTIONAL.split(),
    "optimizer.name",
    "optimizer.betas",
    "schedule.every",
    "a.b.c",
    ".",
]


@tries(40)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(WEIRD.map(json.dumps), st.text(max_size=8))), max_size=3))
def test_a_wrong_setting_is_an_error(settings):
    with measured(), contextlib.suppress(shared.Error):
        recipes.load(recipes.changed(RECIPE, [f"{key}={value}" for key, value in settings]))


# Damaged files

INTEGERS = [struct.pack(form, number) for form in ("<I", "<Q", ">I") for number in (0, 1, 2**31, 2**31 - 1, 2**32 - 1)]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "write", "copy", "remove"]),
        st.integers(0, 2**24),
        st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(INTEGERS)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, changes):
    """Bytes after changes; a place beyond their end counts on from their beginning."""
    content = bytearray(content)
    for how, place, value in changes:
        at = place % (len(content) + 1)
        if how == "flip" and at < len(content):
            content[at] ^= value[0] or 1
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = value
        elif how == "write":
            content[at : at + len(value)] = value
        elif how == "copy":
            content[at:at] = content[at : at + 16 * len(value)]
        elif how == "remove":
            del content[at : at + len(value)]
    return bytes(content)


def damaged_member(content, changes, place):
    """A zip file with one of its members changed, so that the checksums are right and what is inside is read."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = sorted(members)[place % len(members)]
    members[name] = damaged(members[name], changes)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return target.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{format: the content of a small file of it}."""
    folder = tmp_path_factory.mktemp("files")
    chain = shared.load(TINY)
    state = weights.initial(chain)
    for kind in (".safetensors", ".pth", ".keras", ".weights.h5"):
        checkpoints.write_weights(folder / f"file{kind}", kind, chain, state)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    about = {"model": tensors, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "args": np.float64(1)}
    torch.save(about, folder / "file.pt", _use_new_zipfile_serialization=False)
    torch.save(torch_impl.build(TINY), folder / "module.pt")
    (folder / "file.pkl").write_bytes(pickle.dumps({name: array[:1] for name, array in state.items()}, protocol=2))
    with h5py.File(folder / "old.h5", "w", track_order=True) as file:
        for layer in dict.fromkeys(name.rpartition(".")[0] for name in state):
            names = [name for name in state if name.rpartition(".")[0] == layer]
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.replace(f"{layer}.", f"{layer}/").encode() for name in names]
            for name in names:
                group[name.replace(f"{layer}.", f"{layer}/")] = state[name]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_damaged(folder, content, ending=""):
    """Read weights from bytes; what is no error fits the network."""
    path = folder / f"weights{ending}"
    path.write_bytes(content)
    with measured(), contextlib.suppress(shared.Error):
        arrays = reading.read_weights(path).arrays
        assert all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in arrays.values())
        _, state = reading.load_weights(path, shared.load(TINY))
        weights.check_state(state, shapes.weights(shapes.layers(TINY)))


FORMATS = ["file.safetensors", "file.pth", "file.pt", "module.pt", "file.pkl", "file.keras", "file.weights.h5", "old.h5"]


@pytest.mark.parametrize("name", FORMATS)
@tries(25)
@given(CHANGES)
def test_damaged_weights(folder, files, name, changes):
    read_damaged(folder, damaged(files[name], changes))


@pytest.mark.parametrize("name", ["file.pth", "module.pt", "file.keras"])
@tries(25)
@given(CHANGES, st.integers(0, 100))
def test_damaged_members_of_zip_files(folder, files, name, changes, place):
    read_damaged(folder, damaged_member(files[name], changes, place if place % 2 else 0))


@tries(40)
@given(st.data())
def test_damaged_headers_of_safetensors(folder, files, data):
    content = files["file.safetensors"]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(data.draw(changed(st.just(json.loads(content[8 : 8 + length]))))).encode()
    read_damaged(folder, struct.pack("<Q", len(header)) + header + content[8 + length :])


PICTURES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@pytest.fixture(scope="module")
def pictures():
    pixels = np.random.default_rng(0).integers(256, size=(9, 11, 3), dtype=np.uint8)
    contents = {}
    for kind in PICTURES:
        target = io.BytesIO()
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(pixels).save(target, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
        contents[kind] = target.getvalue()
    return contents


@pytest.mark.parametrize("kind", PICTURES)
@tries(20)
@given(CHANGES)
def test_damaged_pictures(folder, pictures, kind, changes):
    path = folder / "picture"
    path.write_bytes(damaged(pictures[kind], changes))
    with measured(), contextlib.suppress(shared.Error):
        pixels = images.read_picture(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert images.picture_size(path) == pixels.shape[1::-1]
        images.preprocess([pixels], shared.load("resnet18"))


@tries(80)
@given(CHANGES, st.integers(0, 100), st.booleans())
def test_damaged_data_sets(folder, changes, place, inside):
    target, generator = io.BytesIO(), np.random.default_rng(0)
    x, y = generator.integers(256, size=(6, 4, 4), dtype=np.uint8), np.arange(6)
    np.savez(target, x_train=x, y_train=y, x_test=x, y_test=y)
    content = target.getvalue()
    path = folder / "data.npz"
    path.write_bytes(damaged_member(content, changes, place) if inside else damaged(content, changes))
    with measured(), contextlib.suppress(shared.Error), warnings.catch_warnings(action="ignore"):
        data = datasets.load_data(path)
        for images_, labels in (data[:2], data[2:4]):
            assert images_.dtype == np.uint8 and images_.ndim == 4 and images_.size and labels.shape == images_.shape[:1]


@tries(60)
@given(CHANGES, st.sampled_from(["spec", "recipe", "log", "index", "map"]))
def test_damaged_texts(folder, changes, kind):
    row = {"epoch": 1, "loss": 0.5, "test_loss": 0.25, "test_accuracy": 0.9, "framework": "PyTorch", "step": 3}
    index = {"metadata": {}, "weight_map": {"fc.weight": "a.safetensors"}}
    texts = {"spec": TINY, "recipe": RECIPE, "log": row, "index": index, "map": {"a": "b"}}
    path = folder / ("log.jsonl" if kind == "log" else "file.json")
    path.write_bytes(damaged((json.dumps(texts[kind]) + "\n").encode() * (2 if kind == "log" else 1), changes))
    readers = {"spec": shared.load, "recipe": recipes.load, "log": runlog.read_log, "index": weights.read_shards}
    with measured(), contextlib.suppress(shared.Error):
        if kind == "map":
            reading.read_weights(path, reading.Naming(map=path))
        else:
            readers[kind](path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The arrays of a checkpoint of a training run, and what it says about them."""
    chain = shared.load(TINY)
    recipe = recipes.load(RECIPE | {"freeze": []})
    state = weights.initial(chain)
    trained = {name: array for name, array in state.items() if ".running_" not in name}
    arrays = state | {f"optimizer.momentum_buffer.{name}": array for name, array in trained.items()}
    row = {"epoch": 1, "step": 4, "learning_rate": 0.1, "loss": 1.5, "accuracy": 0.5, "test_loss": 1.5, "test_accuracy": 0.5,
           "images_per_sec": 100.0, "framework": "PyTorch"}  # fmt: skip
    about = {"recipe": recipe, "spec": chain, "step": 5, "sums": [1.0, 3, 8, 0.5], "history": [row]}
    path = tmp_path_factory.mktemp("run") / "last.safetensors"
    weights.save_state(path, arrays, about)
    assert training.read_checkpoint(path).step == 5
    return arrays, about


@tries(60)
@given(st.data())
def test_damaged_checkpoints(folder, checkpoint, data):
    arrays, about = checkpoint
    path = folder / "last.safetensors"
    weights.save_state(path, arrays, data.draw(changed(st.just(about))))
    with measured(), contextlib.suppress(shared.Error):
        training.resumed(training.read_checkpoint(path), ["epochs=9"])


# What people type


@tries(25)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["show", "list", "schema", "recipe", "--json", "--size", "resnet18", "-h"]), st.text(max_size=8)
        ),
        max_size=4,
    )
)
def test_any_words_end_in_a_message(twins, words):
    ended = twins(*words, "")  # the last word keeps a list of one from being split
    assert ended.returncode in (0, 2)
    assert checks.printable(ended.stdout + ended.stderr) == (ended.stdout + ended.stderr)


@tries(100)
@given(st.text(st.characters()))
def test_what_is_printed_is_printable(text):
    shown = checks.printable(text)
    assert checks.printable(shown) == shown
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n" for c in shown)

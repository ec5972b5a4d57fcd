"""Checkpoints as people have them: kinds of files, hostile pickles, several state dicts, prefixes, dialects of names, types."""

import argparse
import builtins
import collections
import io
import json
import os
import pickle
import re
import shutil
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from typer.testing import CliRunner

import shared
import torch_impl
from shared import dialects, formats, mapping, networks, reading, renaming, shapes, torch_files, unpickling, weights
from twins import checkpoints, cli

# A ResNet with bottlenecks, small; every array but a few has a shape of its own.
SMALL = {
    "name": "small",
    "input": [3, 16, 16],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 8, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 8},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "bottleneck", "in": 8, "out": 16, "repeat": 2},
        {"name": "layer2", "type": "bottleneck", "in": 16, "out": 32, "repeat": 2, "stride": 2},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 32, "out": 10},
    ],
}


@pytest.fixture(scope="module")
def state():
    return weights.randomised(weights.initial(SMALL, seed=3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The path of the spec."""
    path = tmp_path_factory.mktemp("spec") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


def tensors(state):
    return {name: torch.from_numpy(array.copy()) for name, array in state.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and np.array_equal(array, theirs[name]), name


def fitted(arrays):
    """The state of the small network that a checkpoint's arrays are."""
    return renaming.state_of(arrays, renaming.match(arrays, SMALL))


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


ENDINGS = ("x.pth.tar", "x.ckpt", "x.bin", "x.pkl", "x.hdf5", "x.weights", "x", "x.keras")
KINDS = [(kind, ending) for kind in ("zip", "legacy", "pickle", "numpy", "safetensors") for ending in ENDINGS]


@pytest.mark.parametrize(("kind", "ending"), [*KINDS, ("h5", "x.pkl"), ("keras", "x")])
def test_a_file_is_what_its_first_bytes_say(kind, ending, state, small, tmp_path):
    path = tmp_path / ending
    if kind in ("h5", "keras"):
        weights.save_state(tmp_path / "a", state)
        written = tmp_path / {"h5": "b.weights.h5", "keras": "b.keras"}[kind]
        checkpoints.convert(tmp_path / "a", written, str(small))
        shutil.copy(written, path)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind in ("zip", "legacy"):
        torch.save({"state_dict": tensors(state)}, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path.write_bytes(pickle.dumps(tensors(state) if kind == "pickle" else state, protocol=4))
    assert_same(reading.load_weights(path, SMALL)[1], state)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_the_index_of_shards(kind, state, tmp_path):
    names = list(state)
    files = {f"part-{number}.{kind}": names[number::2] for number in (0, 1)}
    for file, members in files.items():
        part = {name: state[name] for name in members}
        save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(tensors(part), tmp_path / file)
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, members in files.items() for name in members}}))
    assert_same(reading.load_weights(index, SMALL)[1], state)
    (tmp_path / f"part-1.{kind}").unlink()
    with pytest.raises(shared.Error, match=rf"model.index.json: its shard part-1.{kind} is missing"):
        reading.load_weights(index, SMALL)
    (tmp_path / "sub").mkdir()
    for outside in ("../x.safetensors", "/etc/passwd", "sub/x"):
        index.write_text(json.dumps({"weight_map": {"fc.bias": outside}}))
        with pytest.raises(shared.Error, match="which is not in its folder"):
            reading.load_weights(index, SMALL)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a complete file of weights: it is empty"),
        (b"\x1f\x8b\x08\x00", "a gzip file; unpack it first"),
        (b"<!DOCTYPE html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b'{"layers": []}', 'JSON without "weight_map"'),
        (b"hello there", r"a file that begins with b'hello th'"),
    ],
)
def test_what_is_no_file_of_weights(content, words, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(shared.Error, match=f"x.pth: .*{words}"):
        reading.read_weights(tmp_path / "x.pth")


def test_an_archive_of_other_things(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(shared.Error, match="a zip file: NumPy's .npz"):
        formats.kind_of(tmp_path / "x.npz")


class Runs:
    """Unpickled, it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Odd:
    """An object with slots and a state, of a class that is nobody else's."""

    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, {2}


def hostile(folder):
    """Objects that would make something in a folder, if anything in them ran."""
    made = str(folder / "ran")
    return {
        "system": Runs(os.system, f"touch {made}"),
        "eval": Runs(builtins.eval, f"open({made!r}, 'w')"),
        "exec": Runs(builtins.exec, f"open({made!r}, 'w')"),
        "mkdir": Runs(os.mkdir, made),
        "import": Runs(builtins.__import__, "antigravity"),
        "torch": Runs(torch.load, made),
        "nested": {"deeper": [Runs(os.mkdir, made), (Runs(os.mkdir, made),)]},
        "bytes": Runs(torch.storage._load_from_bytes, pickle.dumps(Runs(os.mkdir, made))),
    }


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "first"])
def test_nothing_in_a_pickle_is_run(form, state, tmp_path):
    for name, object_ in hostile(tmp_path).items():
        path = tmp_path / f"{name}.pth"
        content = {"extra": object_, "state_dict": tensors(state)}
        if form == "first":  # before any key: the object is what the file holds
            path.write_bytes(pickle.dumps(object_))
            with pytest.raises(shared.Error, match="has no state dict in it|not a complete PyTorch file"):
                reading.read_weights(path)
            continue
        if form == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        assert_same(reading.load_weights(path, SMALL)[1], state)
        assert not (tmp_path / "ran").exists(), name


def build(program):
    """A pickle of protocol 2 from opcodes."""
    return b"\x80\x02" + program + b"."


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nmkdir\n(S'ran'\ntR",  # REDUCE
        b"(S'ran'\nios\nmkdir\n",  # INST
        b"(cos\nmkdir\nS'ran'\no",  # OBJ
        b"cos\nmkdir\n)\x81}S'a'\nS'b'\nsb",  # NEWOBJ and BUILD
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'_function'\ncos\nmkdir\nsb",  # the state of a stand-in
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'_function'\ncos\nmkdir\ns\x86b",  # the same by its slots
        b"cshared.unpickling\nStandin\n(cos\nmkdir\ntR(S'ran'\ntR",  # our own names are as unknown as any
        b"ccollections\nOrderedDict\n}S'update'\ncos\nmkdir\nsb",
        b"cnumpy\ndtype\n}S'__new__'\ncos\nmkdir\nsb",
    ],
)
def test_opcodes_that_call_find_nothing_to_call(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(vars(unpickling.NumpyDtype)), dict(vars(collections.OrderedDict)), dict(unpickling._RULES)
    unpickler = unpickling.Unpickler(io.BytesIO(build(program)))
    try:
        unpickler.load()
    except (pickle.UnpicklingError, shared.Error, TypeError, AttributeError):
        pass  # refused is as good as read
    assert not (tmp_path / "ran").exists()
    assert before == (dict(vars(unpickling.NumpyDtype)), dict(vars(collections.OrderedDict)), dict(unpickling._RULES))


def test_no_name_of_a_pickle_is_imported(state, tmp_path, monkeypatch):
    content = io.BytesIO()
    torch.save({"model": tensors(state), "args": argparse.Namespace(lr=0.1), "odd": Odd()}, content)
    (tmp_path / "x.pth").write_bytes(content.getvalue())
    monkeypatch.setattr("importlib.import_module", lambda name, *_: pytest.fail(f"imports {name}"))
    arrays, notes = torch_files.read_torch(tmp_path / "x.pth")
    assert_same(arrays, state)
    assert notes == [
        "Skipped, without running any of it: argparse.Namespace, test_foreign.Odd."
    ]  # and its set, which is no class


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1),
    "scalar": np.float64(91.2),
    "array": np.array([90.0, 91.2]),
    "texts": np.array(["a", "b"]),
    "objects": np.array([{}, None], dtype=object),
    "dates": np.datetime64("2020-01-01"),
    "random state": np.random.default_rng(0).bit_generator.state,
    "path": __import__("pathlib").PosixPath("runs"),
    "dictionary": collections.defaultdict(list, a=[1]),
    "set": {1, frozenset({2})},
    "complex": 1j,
    "odd": Odd(),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
    "size": torch.Size([1, 2]),
    "generator": torch.Generator().get_state(),
    "sparse": torch.eye(2).to_sparse(),
    "loss": nn.CrossEntropyLoss(weight=torch.ones(3)),
    "enum": re.IGNORECASE,
}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_what_lies_beside_the_tensors_is_no_hindrance(form, state, tmp_path):
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    content = {"epoch": 3, **BESIDE, "optimizer": optimizer.state_dict(), "opt": optimizer, "state_dict": tensors(state)}
    if form == "pickle":
        (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=5))
    else:
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=form == "zip")
    assert_same(torch_files.read_torch(tmp_path / "x")[0], state)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_every_protocol(protocol, state, tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({"model": state, "fortran": np.ones((2, 3), order="F")}, protocol=protocol))
    if protocol < 2:  # no first byte says that this is a pickle
        with pytest.raises(shared.Error, match="a file that begins with"):
            reading.read_weights(tmp_path / "x")
    assert_same(torch_files.read_torch(tmp_path / "x")[0], state)


def test_views_and_parameters(state, tmp_path):
    """Transposed, overlapping, shared and offset tensors, as PyTorch saves them: one storage, many views."""
    whole = torch.arange(100.0)
    content = {
        "transposed": whole[:20].reshape(4, 5).T,
        "offset": whole[7:13],
        "strided": whole[::3],
        "expanded": whole[5].expand(3, 2),
        "parameter": nn.Parameter(whole[:3]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=zipped)
        arrays, _ = torch_files.read_torch(tmp_path / "x")
        assert arrays.keys() == content.keys()
        for name, tensor in content.items():
            assert np.array_equal(arrays[name], tensor.detach().numpy()), name
            assert arrays[name].flags.c_contiguous and arrays[name].flags.writeable, name


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module(zipped, tmp_path):
    net = torch_impl.build("lenet", seed=1)
    torch.save(net, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    arrays, notes = torch_files.read_torch(tmp_path / "x.pt")
    assert_same(arrays, torch_impl.state(net))
    assert "Skipped, without running any of it: torch_impl.network.Network, " in notes[0]
    torch.save({"model": nn.DataParallel(net), "epoch": 1}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(reading.load_weights(tmp_path / "x.pt", shared.load("lenet"))[1], torch_impl.state(net))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    net = torch_impl.build("lenet", seed=1).eval()
    torch.jit.trace(net, torch.zeros(1, *shared.load("lenet")["input"])).save(tmp_path / "x.pt")
    assert_same(reading.load_weights(tmp_path / "x.pt", shared.load("lenet"))[1], torch_impl.state(net))


def test_the_form_of_pytorchs_files_is_the_one_that_we_read(tmp_path):
    """What `torch_files` and `unpickling` know of them. Red: PyTorch has changed what it writes, so change those two."""
    torch.save({"a": torch.ones(2), "p": nn.Parameter(torch.ones(2))}, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        assert {"data.pkl", "data/0", "data/1", "byteorder"} <= names
        text = archive.read(f"{archive.namelist()[0].partition('/')[0]}/data.pkl")
    for word in (b"_rebuild_tensor_v2", b"_rebuild_parameter", b"FloatStorage", b"storage"):
        assert word in text, word
    torch.save({"a": torch.ones(2)}, tmp_path / "x", _use_new_zipfile_serialization=False)
    with open(tmp_path / "x", "rb") as file:
        assert [pickle.load(file), pickle.load(file)] == [torch_files._MAGIC, torch_files._PROTOCOL]
    for name in unpickling._RULES:
        module, _, function = name.rpartition(".")
        if module == "torch._utils" and "_rebuild_tensor_v" in function:
            assert hasattr(torch._utils, function), name
    for name in unpickling.DTYPES:
        assert isinstance(getattr(torch, name), torch.dtype), name


def test_a_tensor_beyond_its_storage_is_refused(state, tmp_path):
    torch.save({"fc.bias": torch.arange(10.0)}, tmp_path / "x", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x").read_bytes()
    assert content.count(b"K\n\x85") == 1  # the size, (10,)
    (tmp_path / "x").write_bytes(content.replace(b"K\n\x85", b"K\xff\x85"))
    with pytest.raises(shared.Error, match="fc.bias has more numbers than its storage"):
        torch_files.read_torch(tmp_path / "x")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off(zipped, share, state, tmp_path):
    torch.save({"state_dict": tensors(state)}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content[: int(share * len(content))])
    with pytest.raises(shared.Error, match="x.bin: not a complete PyTorch file") as error:
        reading.read_weights(tmp_path / "x.bin")
    assert "\n" not in str(error.value)


def test_a_dictionary_in_itself_is_read(state, tmp_path):
    content = {"state_dict": tensors(state)}
    content["self"] = content
    torch.save(content, tmp_path / "x")
    assert_same(torch_files.read_torch(tmp_path / "x")[0], state)


def other(state):
    return {name: array + np.float32(1) for name, array in state.items()}


@pytest.mark.parametrize("place", ["weights", "a.b.c", "student", "checkpoint.model", "netG"])
def test_a_state_dict_under_any_key(place, state, tmp_path):
    content = tensors(state)
    for key in reversed(place.split(".")):
        content = {key: content, "loss": torch.tensor(3.0), "config": {"lr": 1}}
    torch.save(content, tmp_path / "x")
    assert_same(torch_files.read_torch(tmp_path / "x")[0], state)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "ema_state_dict", "swa_model", "trainer.ema.shadow"])
def test_raw_weights_are_read_and_averaged_ones_on_demand(key, state, small, tmp_path):
    average = {"n_averaged": torch.tensor(5), **{f"module.{name}": t for name, t in tensors(other(state)).items()}}
    content = average
    for part in reversed(key.split(".")):
        content = {part: content}
    torch.save({**content, "model": tensors(state)}, tmp_path / "x.pth")
    notes = []
    assert_same(reading.load_weights(tmp_path / "x.pth", SMALL, tell=notes.append)[1], state)
    assert notes == [f"Read model, the raw weights; averaged ones, for --weights-key, are in {key}."]
    word = re.search("ema|swa|shadow", key)[0] if key != "trainer.ema.shadow" else "ema.shadow"
    for chosen in (key, word):
        assert_same(reading.load_weights(tmp_path / "x.pth", SMALL, chosen)[1], other(state))
    done = run("convert", tmp_path / "x.pth", tmp_path / "y.safetensors", "--network", small, "--weights-key", word)
    assert f"Read {key}, averaged weights" in done.output
    assert "Ignored (counter of averaged weights, which nothing reads): n_averaged." in done.output
    assert_same(weights.read_state(tmp_path / "y.safetensors"), other(state))


def test_raw_weights_come_before_averaged_ones_wherever_they_are(state, tmp_path):
    torch.save({"ema": {"state_dict": tensors(other(state))}, "weights": tensors(state)}, tmp_path / "x")
    arrays, notes = torch_files.read_torch(tmp_path / "x")
    assert_same(arrays, state)
    assert notes == ["Read weights, the raw weights; averaged ones, for --weights-key, are in ema.state_dict."]


def test_a_key_that_is_none(state, tmp_path):
    torch.save({"model": tensors(state), "ema_a": tensors(state), "ema_b": tensors(state)}, tmp_path / "x")
    with pytest.raises(shared.Error, match="x: there is nothing under --weights-key modle, did you mean 'model'"):
        reading.load_weights(tmp_path / "x", SMALL, "modle")
    with pytest.raises(shared.Error, match="--weights-key ema could be ema_a, ema_b"):
        reading.load_weights(tmp_path / "x", SMALL, "ema")


@pytest.mark.parametrize("prefixes", [("module.encoder_q.", "module.encoder_k."), ("student.", "teacher."), ("net.", "ema.")])
def test_two_networks_in_one_state_dict(prefixes, state, tmp_path):
    first, second = prefixes
    both = {second + name: array for name, array in other(state).items()}  # the copy comes first in the file
    both |= {first + name: array for name, array in state.items()} | {"queue": np.zeros((4, 8), np.float32)}
    weights.save_state(tmp_path / "x", both)
    notes = []
    assert_same(reading.load_weights(tmp_path / "x", SMALL, tell=notes.append)[1], state)
    assert notes == [f"Read {first[:-1]}; --weights-key reads one of the others: {second[:-1]}."]
    assert_same(reading.load_weights(tmp_path / "x", SMALL, second[:-1].rpartition(".")[2])[1], other(state))


@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "_orig_mod.", "net.", "module._orig_mod.", "a.b.c.", "resnet/", "m.module."]
)
def test_a_prefix_that_all_names_share(prefix, state):
    arrays = {prefix + name: array for name, array in state.items()} | {f"{prefix}bn1.total_ops": np.zeros(1)}
    assert_same(fitted(arrays), state)


def test_a_second_copy_beside_plain_names(state):
    both = state | {f"ema.{name}": array for name, array in other(state).items()}
    found = renaming.match(both, SMALL)
    assert_same(renaming.state_of(both, found), state)
    assert found.notes == ["There is another copy of the weights, for --weights-key: ema."]
    assert_same(fitted(weights.under_key(both, "ema")), other(state))
    with pytest.raises(shared.Error, match="unexpected: criterion.weight 3"):
        renaming.match(state | {"criterion.weight": np.zeros(3)}, SMALL)


def test_a_wrapper_inside_names(state):
    arrays = {name.replace("layer2.", "layer2.module."): array for name, array in state.items()}
    assert_same(fitted(arrays), state)
    arrays = {name.replace("layer1.0.", "layer1._orig_mod.0._checkpoint_wrapped_module."): a for name, a in state.items()}
    assert_same(fitted(arrays), state)


def without_head(state):
    return {name: array for name, array in state.items() if not name.startswith("fc.")}


@pytest.mark.parametrize("head", ["head.", "classifier.", "fc.", "linear.", "head.fc.", "1.", "classifier.1."])
@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "0."])
def test_a_backbone_and_its_head(prefix, head, state):
    parent = "model." if prefix.startswith("model.") else ""
    arrays = {prefix + name: array for name, array in without_head(state).items()}
    arrays |= {f"{parent}{head}{word}": state[f"fc.{word}"] for word in ("weight", "bias")}
    assert_same(fitted(arrays), state)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.body.", "model.", ""])
@pytest.mark.parametrize("head", ["decode_head.conv_seg.weight", "fc.0.weight", "embedding.weight", "rpn.head.conv.weight"])
def test_a_foreign_head_is_left_out_and_said(prefix, head, state, small, tmp_path):
    arrays = {prefix + name: array for name, array in without_head(state).items()} | {head: np.zeros((5, 32), np.float32)}
    weights.save_state(tmp_path / "x", arrays)
    report = checkpoints.convert(tmp_path / "x", tmp_path / "y.safetensors", str(small))
    assert report.networks == ["small_notop"] and "this is small_notop, small up to its last map" in report.notes[-1]
    assert [move.source for move in report.moves if move.ignored] == [head]
    assert_same(weights.read_state(tmp_path / "y.safetensors"), without_head(state))
    with pytest.raises(shared.Error, match="has no classifier, which small needs"):
        reading.load_weights(tmp_path / "x", SMALL)


@pytest.mark.parametrize("extra", ["layer1.2.conv1.weight", "layer3.0.conv1.weight", "layer1.0.se.fc.weight", "conv1.bias"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_layers_that_the_network_lacks_are_no_head(extra, prefix, state):
    """Left out, they would make another function of it, silently."""
    arrays = {prefix + name: a for name, a in (without_head(state) | {extra: np.zeros((8, 8, 1, 1), np.float32)}).items()}
    with pytest.raises(shared.Error, match=rf"unexpected: ({re.escape(prefix)})?{re.escape(extra)} 8x8x1x1"):
        renaming.match(arrays, SMALL)


def test_another_number_of_classes_is_not_a_network_without_its_classifier(state):
    arrays = state | {"fc.weight": np.zeros((37, 32), np.float32), "fc.bias": np.zeros(37, np.float32)}
    for prefix in ("", "module."):
        with pytest.raises(shared.Error, match="misshapen: fc.weight is 37x32, expected 10x32"):
            renaming.match({prefix + name: array for name, array in arrays.items()}, SMALL)


def renamer(*rules):
    def rename(name):
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        return name

    return rename


def letter(match):
    return f"{int(match[1]) + 1}{chr(ord('a') + int(match[2]))}_branch2{'abc'[int(match[4]) - 1]}"


RES2A = renamer(
    (r"^layer(\d)\.(\d)\.(conv|bn)(\d)", lambda m: ("res" if m[3] == "conv" else "bn") + letter(m)),
    (r"^layer(\d)\.(\d)\.downsample\.(\d)", lambda m: f"{('res', 'bn')[int(m[3])]}{int(m[1]) + 1}{'ab'[int(m[2])]}_branch1"),
    (r"^bn1\.", "bn_conv1."),
    (r"^fc\.", "fc1000."),
)
SEQUENTIAL = (
    (r"\.(conv|bn)(\d)\.", lambda m: f".residual_function.{3 * (int(m[2]) - 1) + (m[1] == 'bn')}."),
    (r"^layer(\d)", lambda m: f"conv{int(m[1]) + 1}_x"),
    ("downsample", "shortcut"),
    (r"^(conv|bn)1\.", lambda m: f"conv1.{int(m[1] == 'bn')}."),
)
HUGGING_FACE = (
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}"),
    (r"^(e)", r"resnet.\1"),
    (r"^fc\.", "classifier.1."),
)
DETECTRON = (
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}"),
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
)
CHILDREN = ["conv1", "bn1", "relu", "layer1", "layer2", "avgpool", "fc"]
DIALECTS = {
    "shortcut": renamer(("downsample", "shortcut"), (r"^fc\.", "linear.")),
    "skip": renamer(("downsample", "identity_downsample")),
    "stages from 0": renamer((r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}")),
    "stages by name": renamer((r"^layer(\d)\.(\d)", r"stage_\1.block\2"), (r"\.bn(\d)\.", r".norm\1.")),
    "residual_function": renamer(*SEQUENTIAL),
    "Hugging Face": renamer(*HUGGING_FACE),
    "detectron2": renamer(*DETECTRON),
    "res2a_branch2a": RES2A,
    "children": renamer((r"^([a-z]+1|layer2|fc)\.", lambda m: f"{CHILDREN.index(m[1])}.")),
    "children under a name": renamer((r"^([a-z]+1|layer2)\.", lambda m: f"features.{CHILDREN.index(m[1])}.")),
}


@pytest.mark.parametrize("prefix", ["", "module.", "net.model."])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_in_pytorch(dialect, prefix, state):
    arrays = {prefix + DIALECTS[dialect](name): array for name, array in state.items()}
    assert len(arrays) == len(state)
    assert_same(fitted(arrays), state)


OTHER_WORDS = {"weight": "kernel", "bias": "bias"}
NORM_WORDS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
APPLICATION = renaming.application_names(shapes.layers(SMALL))


def as_keras(state, layer_of, kernel="kernel", norm=""):
    """The arrays in Keras's layout, under layer/word; `norm` follows the layer of a batch norm."""
    arrays = {}
    for name, array in state.items():
        layer, _, word = name.rpartition(".")
        batch_norm = f"{layer}.running_mean" in state
        theirs = (
            NORM_WORDS[word] if batch_norm else {"weight": kernel, "bias": "biases" if kernel == "weights" else "bias"}[word]
        )
        arrays[f"{layer_of(layer)}{norm * batch_norm}/{theirs}"] = renaming.to_keras_layout(array)
    return arrays


def slim(layer):
    layer = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"block{m[1]}/unit_{int(m[2]) + 1}/bottleneck_v1/", layer)
    layer = re.sub(r"bn(\d)$", r"conv\1", layer)
    return "resnet_v1_50/" + re.sub(r"downsample\.\d$", "shortcut", layer).replace("fc", "logits")


def test_tf_slims_names(state, small, tmp_path):
    arrays = {}
    for name, array in as_keras(state, lambda layer: layer, "weights").items():
        layer, _, word = name.rpartition("/")
        norm = "/BatchNorm" if word in NORM_WORDS.values() and f"{layer}/gamma" in as_keras(state, str) else ""
        arrays[f"{slim(layer)}{norm}/{word}"] = array
    arrays["resnet_v1_50/logits/weights"] = arrays["resnet_v1_50/logits/weights"][None, None]  # a 1x1 convolution
    weights.save_state(tmp_path / "x", arrays)
    report = checkpoints.convert(tmp_path / "x", tmp_path / "y.safetensors", str(small))
    assert "stride in the last block" in report.notes[0]
    assert_same(weights.read_state(tmp_path / "y.safetensors"), state)


@pytest.mark.parametrize("prefix", ["", "resnet50.", "sequential/resnet50/"])
@pytest.mark.parametrize("layer_of", [APPLICATION.get, lambda layer: RES2A(f"{layer}.")[:-1]], ids=["conv2_block1", "res2a"])
def test_dialects_in_keras(layer_of, prefix, state):
    arrays = {prefix + name: array for name, array in as_keras(state, layer_of).items()}
    assert_same(fitted(arrays), state)


def numbered(state, shortcut_first, start=3):
    """Names as Keras gives them: by class and in the order of making."""
    rows = shapes.layers(SMALL)
    order = [leaf.name for row in rows for leaf in dialects._in_order(row, shortcut_first)]
    names, counts = {}, collections.Counter()
    for layer in order:
        kind = {"conv": "conv2d", "batch_norm": "batch_normalization", "linear": "dense"}.get(
            next(leaf.type for leaf in shapes.leaves(rows) if leaf.name == layer)
        )
        if kind:
            names[layer] = f"{kind}_{start + counts[kind]}"
            counts[kind] += 1
    return as_keras(state, names.get)


def test_numbered_names_that_two_orders_fit(monkeypatch):
    """A block whose shortcut is like its convolutions: nothing in the file says which is which."""
    block = {"name": "layer1", "type": "basic", "in": 8, "out": 8, "repeat": 1, "stride": 2, "shortcut": "projection3x3"}
    spec = {**SMALL, "layers": [*SMALL["layers"][:3], block, *SMALL["layers"][5:7], {**SMALL["layers"][7], "in": 8}]}
    monkeypatch.setitem(globals(), "SMALL", spec)
    arrays = numbered(weights.initial(spec), shortcut_first=False)
    with pytest.raises(shared.Error, match="Keras's own numbering, and two orders of the layers have the same shapes"):
        renaming.match(arrays, spec)
    drafted = mapping.draft(arrays, spec)
    assert drafted["conv2d_3/kernel"] == "conv1.weight" and drafted["conv2d_4/kernel"] == "layer1.0.conv1.weight ?"


def test_names_that_keras_numbers_and_another_network():
    arrays = {f"conv2d_{number}/kernel": np.zeros((3, 3, 8, 8), np.float32) for number in range(5)}
    with pytest.raises(shared.Error, match="the names are Keras's own numbering; --draft-map FILE.json drafts"):
        renaming.match(arrays, SMALL)


BASIC = {
    **SMALL,
    "name": "basic",
    "layers": [layer | {"type": "basic"} if "repeat" in layer else layer for layer in SMALL["layers"]],
}


@pytest.mark.parametrize("shortcut_first", [False, True])
def test_numbered_names_that_one_order_fits(shortcut_first, monkeypatch):
    monkeypatch.setitem(globals(), "SMALL", BASIC)
    ours = weights.randomised(weights.initial(BASIC))
    arrays = numbered(ours, shortcut_first, start=8)
    found = renaming.match(dict(sorted(arrays.items())), BASIC)
    assert "Keras's own numbering: layers were matched by order and shape" in found.notes[0]
    state = renaming.state_of(arrays, found)
    for name, array in ours.items():
        if ".conv" in name or ".downsample.0" in name:
            assert np.array_equal(state[name], array), name


def keras_base():
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv1")(image)
    return keras.Model(image, layers.BatchNormalization(name="bn1")(x), name="base")


NESTED = {
    "name": "nested",
    "input": [3, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 3},
        {"name": "bn1", "type": "batch_norm", "in": 4, "eps": 1e-3},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 4, "out": 3},
    ],
}


@pytest.fixture(scope="module")
def nested():
    layers = keras.layers
    model = keras.Sequential([keras_base(), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.build((None, 8, 8, 3))
    for number, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(number).uniform(0.5, 1, variable.shape))
    return model


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.weights.h5"])
def test_a_model_inside_a_model(name, nested, tmp_path):
    (nested.save_weights if "weights." in name else nested.save)(tmp_path / name)
    _, state = reading.load_weights(tmp_path / name, NESTED)
    kernel, bias, gamma, beta, dense, dense_bias, *_ = (np.asarray(variable) for variable in nested.trainable_weights)
    assert np.array_equal(state["conv1.weight"], kernel.transpose(3, 2, 0, 1)) and np.array_equal(state["bn1.weight"], gamma)
    assert np.array_equal(state["fc.weight"], dense.T) and np.array_equal(state["bn1.bias"], beta)
    mean, variance = (np.asarray(variable) for variable in nested.non_trainable_weights)
    assert np.array_equal(state["bn1.running_mean"], mean) and np.array_equal(state["bn1.running_var"], variance)


def test_rename(state, small, tmp_path):
    strange = {name.replace("layer", "etage").replace("downsample", "abkuerzung"): array for name, array in state.items()}
    torch.save(tensors(strange), tmp_path / "x.pth")
    with pytest.raises(shared.Error, match="missing: layer1.0.conv1.weight"):
        checkpoints.convert(tmp_path / "x.pth", tmp_path / "y.safetensors", str(small))
    done = run(
        "convert", tmp_path / "x.pth", tmp_path / "y.safetensors", "--network", small,
        "--rename", r"^etage(\d)=layer\1", "--rename", "abkuerzung=downsample",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert_same(weights.read_state(tmp_path / "y.safetensors"), state)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("nothing", "expected OLD=NEW"),
        ("(=x", "not a regular expression"),
        ("absent=x", "no name has 'absent' in it"),
        ("conv[12]=conv", "two arrays would be"),
    ],
)
def test_a_rename_that_does_not_work(rule, words, state):
    with pytest.raises(shared.Error, match=re.escape(f"--rename {rule}") + f".*{words}"):
        mapping.renamed(state, [rule], {})


def test_a_file_without_arrays_has_no_numbering():
    with pytest.raises(shared.Error, match="missing: conv1.weight") as error:
        renaming.match({}, SMALL)
    assert "numbering" not in str(error.value)


def test_draft_map_then_map(state, small, tmp_path):
    """From names that say nothing, in order: what the shape decides is certain, the rest is marked, and right here."""
    arrays = {f"array{number:03}": array for number, array in enumerate(state.values())}
    weights.save_state(tmp_path / "x", arrays | {"odd": np.zeros(7, np.float32)})
    draft = tmp_path / "my map.json"
    done = run("convert", tmp_path / "x", "--draft-map", draft, "--network", small)
    assert done.exit_code == 0, done.output
    assert f"--map '{draft}'" in " ".join(done.output.split())  # to be pasted into a shell
    drafted = json.loads((draft).read_text())
    names = dict(zip(arrays, state, strict=True))
    assert {theirs: ours and ours.removesuffix(" ?") for theirs, ours in drafted.items()} == names | {"odd": None}
    assert drafted["array000"] == "conv1.weight" and drafted["array001"].endswith(" ?")
    report = checkpoints.convert(tmp_path / "x", tmp_path / "y.safetensors", str(small), reading.Naming(map=draft))
    assert_same(weights.read_state(tmp_path / "y.safetensors"), state)
    assert "names are still marked uncertain" in report.notes[0]
    assert [(move.source, move.ignored) for move in report.moves if move.ignored] == [("odd", "as the map says")]


def test_draft_map_of_keras_numbers(state, small, tmp_path):
    arrays = numbered(state, shortcut_first=False)
    drafted = mapping.draft(arrays, SMALL)
    assert {ours.removesuffix(" ?") for ours in drafted.values()} == state.keys()
    found, _ = mapping.renamed(arrays, (), {theirs: ours.removesuffix(" ?") for theirs, ours in drafted.items()})
    assert_same(fitted(found), state)


def test_a_map_whose_names_overlap():
    """Two layers that swap their names, a row that moves on by one, and Keras's names with dots for slashes."""
    one, two, three = (np.full(3, number, np.float32) for number in range(3))
    found, _ = mapping.renamed({"x.w": one, "y.w": two}, (), {"x.w": "y.w", "y.w": "x.w"})
    assert found["y.w"] is one and found["x.w"] is two and len(found) == 2
    row = {"0.w": one, "1.w": two, "2.w": three}
    found, ignored = mapping.renamed(row, (), {"0.w": "1.w", "1.w": "2.w", "2.w": None})
    assert found == {"1.w": one, "2.w": two} and ignored["2.w"] is three
    keras = {"conv1/kernel": one, "conv2/kernel": two}
    found, _ = mapping.renamed(keras, (), {"conv1.kernel": "conv2.weight", "conv2.kernel": "conv1.weight"})
    assert found["conv2/kernel"] is one and found["conv1/kernel"] is two and len(found) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"x.w": "y.w"}, "'x.w' would be y.w, the name of another array"),
        ({"x.w": "z.w", "y.w": "z.w"}, "'y.w' and 'x.w' would both be z.w"),
    ],
)
def test_a_map_that_gives_two_arrays_one_name(names, words):
    with pytest.raises(shared.Error, match=f"--map: {words}"):
        mapping.renamed({"x.w": np.zeros(1), "y.w": np.ones(1)}, (), names)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "expected an object that maps names"),
        ('{"a": 3}', "expected an object that maps names"),
        ('{"nobody": "fc.bias"}', "no array is called 'nobody'"),
        ("{", "not JSON"),
    ],
)
def test_a_map_that_is_wrong(content, words, state, small, tmp_path):
    weights.save_state(tmp_path / "x", state)
    (tmp_path / "m.json").write_text(content)
    done = run("convert", tmp_path / "x", tmp_path / "y.pth", "--network", small, "--map", tmp_path / "m.json")
    assert isinstance(done.exception, shared.Error) and words in str(done.exception)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", ">f2", "f4", "f8", "i8", ">i2", "u1", "bfloat16"])
def test_types_are_made_one_where_arrays_are_read(dtype):
    values = np.arange(12).reshape(3, 4)
    array = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for given in (array, array.T.copy().T, np.asfortranarray(array), array[::-1][::-1]):
        normal = weights.normalised({"x": given})["x"]
        assert normal.dtype == (np.float64 if dtype.endswith("f8") else np.float32) and normal.dtype.isnative
        assert normal.flags.c_contiguous and np.array_equal(normal, values)


def test_integers_that_float32_would_round():
    assert weights.normalised({"x": np.array([2**40 + 1])})["x"].dtype == np.float64
    assert weights.normalised({"bn1.num_batches_tracked": np.array(7, ">i8")})["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("array", [np.zeros(3, complex), np.array(["a"]), np.array([None])])
def test_what_is_no_number_is_refused(array):
    with pytest.raises(shared.Error, match="x holds .*, expected floating-point numbers"):
        weights.normalised({"x": array})


@pytest.mark.filterwarnings("ignore")
def test_sparse_and_quantised_tensors_are_refused(state, tmp_path):
    for tensor, kind in (
        (torch.eye(10, 32).to_sparse(), "sparse"),
        (torch.eye(10, 32).to_sparse_csr(), "sparse"),
        (torch.ones(10, 32, dtype=torch.complex64).conj().imag, "lazily negated or conjugated"),
        (torch.quantize_per_tensor(torch.eye(10, 32), 0.1, 0, torch.qint8), "quantised"),
    ):
        torch.save({"state_dict": tensors(state) | {"fc.weight": tensor}}, tmp_path / "x.pth")
        with pytest.raises(shared.Error, match=f"x.pth: fc.weight is a {kind} tensor, which cannot be read"):
            reading.load_weights(tmp_path / "x.pth", SMALL)


def test_big_endian_arrays_in_hdf5(tmp_path):
    state = weights.initial("lenet_caffe")
    with h5py.File(tmp_path / "x", "w") as file:
        for layer in ("conv1", "conv2", "ip1", "ip2"):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            for word, ours in (("kernel:0", "weight"), ("bias:0", "bias")):
                flattened = (50, 4, 4) if (layer, ours) == ("ip1", "weight") else None
                group[word] = renaming.to_keras_layout(state[f"{layer}.{ours}"], flattened).astype(">f4")
    assert_same(reading.load_weights(tmp_path / "x", shared.load("lenet_caffe"))[1], state)


def test_numbers_that_are_not_finite(state, small, tmp_path):
    weights.save_state(tmp_path / "x", state | {"fc.bias": np.full(10, np.nan, np.float32)})
    report = checkpoints.convert(tmp_path / "x", tmp_path / "y.pth", str(small))
    assert report.notes == ["NaN or infinite values in 1 array: fc.bias. Other commands refuse them."]
    for load in (reading.load_weights, reading.fit_weights):
        with pytest.raises(shared.Error, match="x: fc.bias has NaN or infinite values"):
            load(tmp_path / "x", SMALL)


def test_of_networks_with_the_same_arrays_the_published_one_is_taken(tmp_path):
    weights.save_state(tmp_path / "x", weights.initial("resnet20"))
    for destination in ("y.pth", "y.safetensors"):
        report = checkpoints.convert(tmp_path / "x", tmp_path / destination)
        assert report.networks == ["resnet20"]
        assert report.notes == ["The arrays also fit plain20; resnet20 is the one that is published. --network chooses."]
    arrays = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in shapes.weights(shapes.layers(shared.load("drn_c_26"))).items()
    }
    found, notes = checkpoints._chosen(arrays, [shared.load("drn_b_26"), shared.load("drn_c_26")], ".keras")
    assert [match.spec["name"] for match in found] == ["drn_c_26"]
    assert notes == ["The arrays also fit drn_b_26; drn_c_26 is the one that is published. --network chooses."]


def test_the_nearest_network_has_most_in_common():
    arrays = weights.initial("resnet20")
    del arrays["layer2.1.conv1.weight"]
    with pytest.raises(shared.Error, match="resnet20 is nearest:\n  missing: layer2.1.conv1.weight 32x32x3x3"):
        renaming.guess_networks({f"net.{name}": array for name, array in arrays.items()})


def test_a_network_that_is_none_of_the_zoo(state):
    with pytest.raises(shared.Error, match="not a network of the zoo: .* Write its spec and pass --network") as error:
        renaming.guess_networks({f"u{number}": array for number, array in enumerate(state.values())})
    assert "\n" not in str(error.value)


def test_long_lists_are_cut_to_ten():
    arrays = {f"x{number}": np.zeros(3, np.float32) for number in range(50)}
    with pytest.raises(shared.Error) as error:
        renaming.match(arrays, shared.load("resnet20"))
    lines = str(error.value).splitlines()
    assert len(lines) == 12 and lines[-1] == "  and 92 more missing, 45 more unexpected"
    assert sum("unexpected:" in line for line in lines) == 5


def test_a_note_is_no_reason_to_fail(tmp_path):
    """Names of Keras's own, which no network of the zoo has, with a spec that decides."""
    spec = {
        **NESTED,
        "name": "mine",
        "layers": [layer | {"name": layer["name"].replace("fc", "dense_1")} for layer in NESTED["layers"]],
    }
    (tmp_path / "mine.json").write_text(json.dumps(spec))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for layer, shapes_ in {"conv1": [(3, 3, 3, 4), (4,)], "bn1": [(4,)] * 4, "dense_1": [(4, 3), (3,)]}.items():
            words = ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"] if layer == "bn1" else ["kernel:0", "bias:0"]
            file.create_group(layer).attrs["weight_names"] = words
            for word, shape in zip(words, shapes_, strict=True):
                file[layer][word] = np.ones(shape, np.float32)
    report = checkpoints.convert(tmp_path / "x.h5", tmp_path / "y.pth", str(tmp_path / "mine.json"))
    assert report.networks == ["mine"] and report.notes == []


def test_counters_are_ignored_with_the_reason(state):
    extra = {"n_averaged": np.array(3), "total_ops": np.zeros(1), "layer1.0.total_params": np.zeros(1)}
    extra |= {"layer1.0.bn1.num_batches_tracked": np.array(3)}
    arrays = state | extra
    moves = renaming.moves_of(arrays, renaming.match(arrays, networks.load(SMALL)))
    assert {move.source: move.ignored.partition(",")[0] for move in moves if move.ignored} == {
        "n_averaged": "counter of averaged weights",
        "total_ops": "counter of a profiler",
        "layer1.0.total_params": "counter of a profiler",
        "layer1.0.bn1.num_batches_tracked": "batch counter",
    }

"""Files and values that are made to hang, to exhaust memory or to end the process: each is one message, at once.

Run as a program, `python test_hostile.py FOLDER`, this file reads the bombs in a process of its own and prints what happened.
"""

import contextlib
import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import shared
from shared import checks, data, files, images, limits, reading, recipes, shapes, weights
from twins import datasets, locate, runlog

GIGABYTES = 4 * 10**9
SECONDS, MEGABYTES = 1, 300  # that a bomb may take

TINY = {
    "name": "tiny",
    "input": [1, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 3, "padding": 1},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 4, "out": 10},
    ],
}


# Bombs


def zeros(count, wrapped=False):
    """Deflated zeros: a block of a megabyte, again and again."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = block * (count // 10**6) + zlib.compressobj(9, wbits=-15).flush()
    return b"\x78\x9c" + stream + bytes(4) if wrapped else stream


def zip_of(path, members):
    """A zip file of {name: bytes, or how many zeros}; the sizes in its list of members are those after unpacking."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            archive.writestr(info, content if isinstance(content, bytes) else zeros(content))
            if isinstance(content, int):
                info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, content


def npy(shape, descr="|u1"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npz_bomb(path):
    zip_of(path, {f"{name}.npy": GIGABYTES // 2 if name[0] == "x" else npy((3,)) + bytes(3) for name in data.ARRAYS})


def padded_npz_bomb(path):
    """One array is a bomb, and noise beside it makes the file as large as that needs."""
    members = {f"{name}.npy": npy((3,)) + bytes(3) for name in data.ARRAYS}
    noise = np.random.default_rng(0).bytes(20 * 10**6)
    zip_of(path, members | {"x_train.npy": GIGABYTES, "noise.npy": noise})


def keras_bomb(path):
    zip_of(path, {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": GIGABYTES})


def keras_config_bomb(path):
    zip_of(path, {"metadata.json": b"{}", "config.json": 200 * 10**6, "model.weights.h5": b""})


def bzip2_bomb(path):
    """Of bzip2 and LZMA, Python unpacks any number of bytes at a time, whatever a member's size is said to be."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr("model.weights.h5", b"")


def empty_dataset(path):
    """A dataset of 4 GB, none of which was written."""
    with h5py.File(path, "w") as file:
        group = file.create_group("conv1")
        group.attrs["weight_names"] = [b"conv1/kernel:0"]
        group.create_dataset("conv1/kernel:0", (GIGABYTES // 4,), "f4", chunks=(2**20,), compression="gzip")


def many_datasets(path):
    with h5py.File(path, "w") as file:
        for number in range(100):
            file.create_dataset(f"_layers/conv{number}/vars/0", (10**7,), "f4", chunks=(10**5,), compression="gzip")


def large_chunk(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("conv1/vars/0", (4,), "f4", maxshape=(None,), chunks=(10**9,), compression="gzip")
        data.id.write_direct_chunk((0,), zeros(GIGABYTES, wrapped=True))


def many_groups(path):
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(20_000):
            file.create_group(f"layer{number}")


def png_bomb(path):
    side = 12_000
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zeros(3 * side * side, True)),
        (b"IEND", b""),
    ]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in parts:
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


def elongated(path):
    """A picture that becomes one of 65 gigapixels where its shorter side becomes 256."""
    Image.new("L", (1, 1_000_000)).save(path, "PNG")


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(size, stride, key="0"):
    """The program of a pickle that makes a tensor of float32 on a storage."""
    numbers = [b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in row) + b"t" for row in (size, stride)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x01tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + b"".join(numbers) + b"\x89}tR"


def torch_file(path, program, storage=bytes(4096)):
    zip_of(path, {"archive/data.pkl": b"\x80\x02" + program + b".", "archive/data/0": storage, "archive/version": b"3"})


def state_of(*tensors):
    return b"}(" + b"".join(text(f"layer{number}.weight") + program for number, program in enumerate(tensors)) + b"u"


def torch_storage_bomb(path):
    torch_file(path, state_of(tensor([4], [1])), GIGABYTES)


def expanded_tensor(path):
    torch_file(path, state_of(tensor([2**20, 2**20], [0, 0])))


def many_views(path):
    torch_file(path, state_of(*[tensor([10**6], [0])] * 10_000))


def pickle_file(path, program):
    path.write_bytes(b"\x80\x02" + program + b".")


def memo_bomb(path):
    pickle_file(path, b"N" + b"r" + struct.pack("<I", 2**29) + b"0}")


def nested_tuples(path):
    pickle_file(path, b"})" + b"\x85" * 1_000_000 + b"Ns")


def doubled_tuples(path):
    pickle_file(path, b"})" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"Ns")


def copied_text(path):
    word, times = 10**6, 50_000
    call = b"c_codecs\nencode\nq\x01" + text("a" * word) + b"q\x02" + text("latin1") + b"q\x030" + b"00"
    pickle_file(path, call + b"](" + b"h\x01(h\x02h\x03tR" * times + b"e")


def long_text(path):
    pickle_file(path, b"\x8e" + struct.pack("<Q", 2**40) + b"abc")


def modules(path):
    """A module that has itself as a hundred members: 100 ** 12 paths."""
    names = b"".join(text(f"m{number}") + b"h\x01" for number in range(100))
    program = b"ctorch.nn\nModule\n)\x81q\x01}(" + text("_parameters") + b"}" + text("_modules") + b"}(" + names + b"uub"
    pickle_file(path, program)


def itself(path):
    pickle_file(path, b"]q\x01h\x01a")


def nested_files(path):
    """Legacy files in legacy files: each level is read from a copy of the rest."""
    content = b"\x80\x02B" + struct.pack("<I", 4 * 10**6) + bytes(4 * 10**6) + b"."
    for _ in range(300):
        content = b"\x80\x02ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(content)) + content + b"tR."
    path.write_bytes(content)


def safetensors_header(path):
    path.write_bytes(struct.pack("<Q", 2**31) + b"{" + b" " * 1000)


def large_json(path):
    path.write_bytes(b'{"name": "')
    os.truncate(path, 10**9)


def deep_json(path):
    path.write_bytes(b"[" * 10**6)


def repeated_keys(path):
    keys = ", ".join(f'"key{number}": 0' for number in range(100_000))
    path.write_text(f'{{"name": "x", "input": [1, 1, 1], {keys}}}', encoding="utf-8")


def index_of_itself(path):
    path.write_text(json.dumps({"weight_map": {"a": path.name}}), encoding="utf-8")


BOMBS = {  # {what makes it: the ending of its name, what reads it}
    npz_bomb: (".npz", datasets.load_data),
    padded_npz_bomb: (".npz", datasets.load_data),
    keras_bomb: (".keras", reading.read_weights),
    keras_config_bomb: (".keras", reading.read_weights),
    bzip2_bomb: (".keras", reading.read_weights),
    empty_dataset: (".h5", reading.read_weights),
    many_datasets: (".weights.h5", reading.read_weights),
    large_chunk: (".weights.h5", reading.read_weights),
    many_groups: (".h5", reading.read_weights),
    png_bomb: (".png", images.read_picture),
    elongated: (".png", lambda path: images.preprocess([images.read_picture(path)], shared.load("resnet18"))),
    torch_storage_bomb: (".pth", reading.read_weights),
    expanded_tensor: (".pth", reading.read_weights),
    many_views: (".pth", reading.read_weights),
    memo_bomb: (".pth", reading.read_weights),
    nested_tuples: (".pth", reading.read_weights),
    doubled_tuples: (".pth", reading.read_weights),
    copied_text: (".pth", reading.read_weights),
    long_text: (".pth", reading.read_weights),
    modules: (".pth", reading.read_weights),
    itself: (".pth", reading.read_weights),
    nested_files: (".pth", reading.read_weights),
    safetensors_header: (".safetensors", reading.read_weights),
    large_json: (".json", shared.load),
    deep_json: (".json", recipes.load),
    repeated_keys: (".json", shared.load),
    index_of_itself: (".index.json", reading.read_weights),
}


WORDS = {  # of messages, where another reason would do as well
    bzip2_bomb: "not compressed with deflate",
    many_groups: "more than 16,384 groups",
    memo_bomb: "the pickle numbers an object",
    index_of_itself: "itself an index of shards",
}


def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def explode(folder):
    """Read each bomb; print a line of JSON for each: its name, the message, seconds, and megabytes that the process grew by.

    What takes long is read again: on a machine with other work, even processor time varies.
    """
    shared.load("resnet18")
    for make, (ending, read) in BOMBS.items():
        path = folder / f"{make.__name__}{ending}"
        before, message, seconds, megabytes = used(), "none", math.inf, math.inf
        for _ in range(3):
            started = time.process_time()
            try:
                read(path)
            except shared.Error as error:
                message = f"{error}"
            seconds, megabytes = min(seconds, time.process_time() - started), min(megabytes, used() - before)
            if seconds < SECONDS / 2:
                break
        print(json.dumps([make.__name__, message, seconds, megabytes]), flush=True)


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    for make, (ending, _) in BOMBS.items():
        make(folder / f"{make.__name__}{ending}")
    sizes = {path: path.stat().st_size for path in folder.iterdir()}
    assert all(
        size < 6 * 10**6 for path, size in sizes.items() if path.stem not in ("large_json", "many_groups", "padded_npz_bomb")
    )
    command = [sys.executable, __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    return {name: rest for name, *rest in map(json.loads, ended.stdout.splitlines())}, ended.stderr


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_bomb_is_one_message_at_once(exploded, make):
    results, errors = exploded
    assert make.__name__ in results, errors  # the process ended before it, or because of it
    message, seconds, megabytes = results[make.__name__]
    assert WORDS.get(make, "") in message
    allowed = SECONDS * (2 if make in (many_groups, copied_text) else 1)
    assert message != "none" and seconds < allowed and megabytes < MEGABYTES, results


def test_what_compresses_well_and_is_small_is_read(tmp_path):
    """Black images are a thousand times smaller on disk, and HDF5 with gzip is small where weights are zero."""
    x, y = np.zeros((200, 28, 28), np.uint8), np.zeros(200, int)
    np.savez_compressed(tmp_path / "black.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert datasets.load_data(tmp_path / "black.npz").x_train.shape == (200, 28, 28, 1)
    with h5py.File(tmp_path / "zeros.weights.h5", "w") as file:
        file.create_dataset("conv1/vars/0", data=np.zeros((1000, 1000), np.float16), compression="gzip")
    assert reading.read_weights(tmp_path / "zeros.weights.h5").arrays["conv1/weight"].shape == (1000, 1000)
    Image.new("1", (4000, 4000)).save(tmp_path / "blank.png")
    assert images.read_picture(tmp_path / "blank.png").shape == (4000, 4000, 3)


def test_what_is_larger_than_memory_is_refused_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 10**6)
    x, y = np.zeros((2000, 28, 28), np.uint8), np.zeros(2000, int)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(shared.Error, match=r"data.npz: its contents need 0.0 GB of memory, this machine has 0.0 GB"):
        datasets.load_data(tmp_path / "data.npz")
    weights.save_state(tmp_path / "large.safetensors", {"a": np.zeros(10**6, np.float32)})
    with pytest.raises(shared.Error, match="its arrays need"):
        reading.read_weights(tmp_path / "large.safetensors")


# What is no file


@pytest.fixture(params=["pipe", "device", "folder", "socket", "missing", "zero byte", "half a surrogate"])
def no_file(request, tmp_path):
    def path(ending):
        path = tmp_path / f"x{ending}"
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "socket":
            with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
                server.bind(path.name)
        elif request.param == "zero byte":
            return f"{tmp_path}/\0{ending}"
        elif request.param == "half a surrogate":
            return f"{tmp_path}/\ud800{ending}"
        return path

    return path


@pytest.mark.parametrize(
    "ending, read",
    [
        (".json", shared.load),
        (".json", recipes.load),
        (".pth", reading.read_weights),
        (".safetensors", weights.read_state),
        (".safetensors", weights.read_about),
        (".png", images.read_picture),
        (".png", images.picture_size),
        (".npz", datasets.load_data),
        (".jsonl", lambda path: runlog.read_log(path)),
    ],
)
def test_what_is_no_file_is_one_message(no_file, ending, read):
    words = r"is a (pipe|device|folder|socket), expected a file|there is no such file|not a valid path"
    path = no_file(ending)
    with pytest.raises(shared.Error, match=words):
        read(path)


# What may not be read, or replaced


def test_a_file_without_permission(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(shared.Error, match="a.png: cannot be read: Permission denied"):
        images.read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_not_replaced_by_a_file(link, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    if link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    for write in (files.check_writable, lambda path: files.write_text(path, "text")):
        with pytest.raises(shared.Error, match=f"{path.name}: cannot be written"):
            write(path)
    assert (tmp_path / "pipe").is_fifo() and path.is_symlink() == link


@pytest.mark.parametrize("written", [files.atomic_path, files.atomic_folder])
def test_memory_that_runs_out_is_no_fault_of_the_file(written, tmp_path):
    with pytest.raises(RuntimeError, match="CUDA out of memory"), written(tmp_path / "a"):
        raise RuntimeError("CUDA out of memory")


def test_a_link_to_itself_is_replaced(tmp_path):
    path = tmp_path / "link"
    path.symlink_to(path)
    files.check_writable(path)
    files.write_text(path, "text")
    assert path.read_text() == "text"


def test_a_link_remains_one(tmp_path):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "link"
    for target in (tmp_path / "folder" / "a", tmp_path / "none" / "a"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        if target.parent.exists():
            files.check_writable(path)
            files.write_text(path, "text")
            assert path.is_symlink() and target.read_text() == "text" and not target.is_symlink()
        else:
            with pytest.raises(shared.Error, match="link: there is no folder .*none"):
                files.check_writable(path)


def test_a_text_that_no_file_can_have(tmp_path):
    with pytest.raises(shared.Error, match="a.csv: cannot be written: .*surrogates not allowed"):
        files.write_text(tmp_path / "a.csv", "caf\udce9")
    assert not [*tmp_path.iterdir()]


def test_a_folder_in_a_file(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(shared.Error, match="report: cannot be created: .*notes.txt is a file"):
        files.check_folder(tmp_path / "notes.txt" / "report")
    files.check_folder(tmp_path / "new" / "report")


# Numbers


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("repeat", 100_000, "'repeat' is 100000, expected a whole number from 1 to 10,000"),
        ("repeat", 10**400, "'repeat' is a number of more than 60 digits, expected at most 2,147,483,647"),
        ("repeat", 9_999, "it has 10,001 layers and blocks, expected at most 10,000, 'repeat' counted"),
        ("out", 2**31, "'out' is 2147483648, expected at most 2,147,483,647"),
        ("out", 2**31 - 1, "the parameters up to it are"),
        ("dilation", 2**31 - 1, "more than 1,099,511,627,776 numbers"),
        ("eps", 10**400, "'eps' is a number of more than 60 digits"),
        ("momentum", 1e999, "'momentum' is Infinity, expected a number above 0, at most 1"),
        ("eps", 1e-999, "'eps' is 0.0, expected a number above 0"),
    ],
)
def test_numbers_in_specs_have_limits(key, value, words):
    layers = [{"name": "conv1", "type": "conv", "in": 1, "out": 1024, "kernel": 1}]
    layers += [{"name": f"layer{n}", "type": "basic", "in": 1024, "out": 1024} for n in (1, 2)]
    layers[1][key] = value
    with pytest.raises(shared.Error) as caught:
        shared.load({"name": "x", "input": [1, 8, 8], "layers": layers[: 2 + (key == "repeat")][: 3 if key == "repeat" else 2]})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ("epochs=2147483648", "'epochs' is 2147483648, expected at most 2,147,483,647"),
        ("seed=99999999999", "'seed' is 99999999999, expected at most"),
        ("optimizer.learning_rate=1e999", "'learning_rate' is Infinity, expected a number above 0"),
        (f"optimizer.weight_decay={10**400}", "'weight_decay' is a number of more than 60 digits"),
        ("augmentation.pad=2147483647", "'pad' is 2147483647, expected a whole number from 0 to 1,024"),
        ("classes=2147483647", "expected at most 2,147,483,647|the parameters up to it|need|no class"),
        ("optimizer.betas=[0, 1e999]", "unknown key 'betas'"),
    ],
)
def test_numbers_in_recipes_have_limits(twins, tmp_path, change, words):
    ended = twins("train", "digits_residual", "--out", tmp_path / "run", "--set", change)
    assert ended.returncode == 2
    assert any(word in ended.stderr for word in words.split("|")), ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        "show resnet18 --size 2147483648",
        "show resnet18 --size 99999999999999999999999",
        "show resnet18 --size 2000000000",
        "compare resnet18 --size 1000000",
        "compare resnet18 --steps 2147483648",
        "train --epochs 2147483648",
        "train --backend tf --devices 1000000",
        "locate resnet18 x.png --weights w --threshold 1e999",
        "locate resnet18 x.png --weights w --class " + "9" * 5000,
        "compare resnet18 --learning-rate nan",
    ],
)
def test_numbers_in_options_have_limits(twins, words):
    started = time.monotonic()
    ended = twins(words)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and time.monotonic() - started < 5


def test_a_network_that_memory_cannot_hold_is_refused_before_it_is_made(tmp_path, twins):
    import keras_impl
    import torch_impl

    wide = json.loads(json.dumps(TINY))
    wide["layers"][0]["out"] = wide["layers"][3]["in"] = 2**31 - 1
    (tmp_path / "wide.json").write_text(json.dumps(wide), encoding="utf-8")
    assert twins("show", tmp_path / "wide.json").returncode == 0
    for build in (torch_impl.build, keras_impl.build, weights.initial):
        with pytest.raises(shared.Error, match=r"the weights and the largest map need [\d,.]+ GB of memory, this machine has"):
            build(wide)
    image = tmp_path / "x.png"
    Image.new("L", (8, 8)).save(image)
    arguments = ("--layer", "conv1", "--out", tmp_path / "o.png")
    ended = twins("activations", tmp_path / "wide.json", image, *arguments)
    assert ended.returncode == 2 and "of memory, this machine has" in ended.stderr


def test_the_schema_says_the_limits(twins):
    printed = json.loads(twins("schema").stdout)
    layers = printed["$defs"]["layers"]
    basic = next(kind for kind in layers["items"]["oneOf"] if kind["properties"]["type"] == {"const": "basic"})["properties"]
    assert layers["maxItems"] == basic["repeat"]["maximum"] == limits.LAYERS == 10_000
    assert basic["in"]["maximum"] == limits.WHOLE == 2**31 - 1
    recipe = json.loads(twins("schema recipe").stdout)
    assert recipe["properties"]["epochs"]["maximum"] == limits.WHOLE


def test_the_longest_chain_is_read_and_shown_in_a_second():
    layers = [{"name": "conv1", "type": "conv", "in": 1, "out": 4, "kernel": 1}]
    layers += [{"name": f"relu.{number}", "type": "relu"} for number in range(limits.LAYERS - 1)]
    started = time.process_time()
    assert len(shapes.layers(shared.load({"name": "long", "input": [1, 1, 1], "layers": layers}))) == limits.LAYERS
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["features.٣", "features.00", "features." + "9" * 5000, "a" * 101, "conv\n", "a.1.2"])
def test_names_of_layers(name):
    with pytest.raises(shared.Error, match="a name is a word of at most 100 letters"):
        shared.load({"name": "x", "input": [1, 1, 1], "layers": [{"name": name, "type": "relu"}]})


def test_boxes(tmp_path):
    """A picture of a hundred thousand boxes, whose lists were once added up one by one."""
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    entry = {"file": "a.png", "boxes": [[0, 0, 9, 9]] * 50_000, "class": "9" * 5000}
    (tmp_path / "boxes.json").write_text(json.dumps([entry]), encoding="utf-8")
    started = time.process_time()
    with pytest.raises(shared.Error, match=r"entry 1 \(a.png\): class 9{60}: resnet18 has 1,000 classes"):
        locate.read_boxes(tmp_path, shared.load("resnet18"))
    assert time.process_time() - started < 1


def test_no_weights(tmp_path, twins):
    """A network of nothing but ReLUs, in a state of nothing."""
    import keras_impl
    import torch_impl

    bare = {"name": "bare", "input": [1, 4, 4], "layers": [{"name": "relu", "type": "relu"}]}
    (tmp_path / "bare.json").write_text(json.dumps(bare), encoding="utf-8")
    for package in (torch_impl, keras_impl):
        net = package.build(bare)
        assert package.state(net) == {}
        package.load(net, {})
    weights.save_state(tmp_path / "bare.safetensors", {})
    for words in (
        ("show", "bare.json"),
        ("compare", "bare.json", "--steps", 0),
        ("compare", "bare.json", "--steps", 1),
        ("export", "bare.json", "--weights", "bare.safetensors", "--out", "o.pth", "--out", "o.keras"),
        ("export", "bare.json", "--weights", "bare.safetensors", "--out", "f.pth", "--out", "f.keras", "--fold"),
        ("convert", "bare.safetensors", "o.keras", "--network", "bare.json"),
        ("convert", "bare.safetensors", "o.keras"),
    ):
        ended = twins(*words, folder=tmp_path)
        assert ended.returncode in (0, 2) and len(ended.stderr.splitlines()) <= 1, ended


# What is printed

EVIL = "\x1b[2Jx\r:smile:[bold]\u202e\x07\x9b"


@pytest.mark.parametrize(
    "words",
    [
        ["show", EVIL],
        ["show", f"{EVIL}.json"],
        ["show", "resnet18", "--size", EVIL],
        ["show", f"resnet18{EVIL}", "--size", "3"],
        [EVIL],
        ["list", EVIL],
        ["list", f"--{EVIL}"],
        ["train", "--set", EVIL],
        ["train", "--set", f"{EVIL}=1"],
        ["train", "--set", f'network="{EVIL}"'],
        ["train", "--resume", EVIL],
        ["train", "--backend", EVIL],
        ["predict", "resnet18", EVIL, "--weights", EVIL],
        ["predict", "resnet18", "--data", EVIL, "--weights", "x"],
        ["convert", EVIL, f"{EVIL}.pth"],
        ["convert", "x", EVIL],
        ["curves", EVIL, "--out", f"{EVIL}.png"],
        ["locate", "resnet18", EVIL, "--weights", "x", "--class", EVIL],
        ["show", "\udcff\udcfe"],
        ["convert", "\udcff", "\udcfe.pth"],
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(twins, words):
    ended = twins(*words)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    printed = ended.stdout + ended.stderr
    assert checks.printable(printed) == printed, ascii(printed)
    assert EVIL[:4] not in printed and "\U0001f604" not in printed


def test_names_in_files_are_printed_as_text(twins, tmp_path):
    """A title in a spec, names of arrays, the label of a run, and the name of a picture."""
    evil = EVIL.replace("\r", "")
    titled = {**TINY, "title": evil, "source": evil}
    (tmp_path / "tiny.json").write_text(json.dumps(titled), encoding="utf-8")
    shown = twins("show", tmp_path / "tiny.json").stdout
    escaped = "\\x1b[2Jx:smile:[bold]\\u202e"
    assert escaped in shown and "\x1b" not in shown and "\u202e" not in shown
    state = weights.initial(TINY)
    weights.save_state(tmp_path / "w.safetensors", state | {f"{evil}.num_batches_tracked": np.zeros((), np.int64)})
    ended = twins("convert", tmp_path / "w.safetensors", tmp_path / "o.pth", "--network", tmp_path / "tiny.json")
    assert ended.returncode == 0 and escaped in ended.stdout and "\x1b" not in ended.stdout
    row = {"epoch": 1, "loss": 1.0, "test_loss": 1.0, "test_accuracy": 0.5, "framework": "PyTorch"}
    (tmp_path / "log.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with warnings.catch_warnings(record=True) as warned:
        titles = ("--label", evil, "--title", evil + "\udcff")
        ended = twins("curves", tmp_path / "log.jsonl", "--out", tmp_path / "c.svg", *titles)
    assert ended.returncode == 0 and escaped in ended.stdout and "\x1b" not in ended.stdout
    assert not any("\x1b" in str(warning.message) for warning in warned)
    assert "\x1b" not in (tmp_path / "c.svg").read_text(encoding="utf-8")


STREAMS = [
    ("list | head -n 1", 141, ""),
    ("show resnet18 | true", 141, ""),
    ("schema >&-", 0, ""),
    ("show resnet18 2>&-", 0, ""),
    ("show nothing >&- 2>&-", 2, ""),
    ("show resnet18 >/dev/full", 2, "twins: [Errno 28] No space left on device\n"),
    ("show nothing 2>/dev/full", 2, ""),
]


@pytest.mark.parametrize("words, status, message", STREAMS, ids=[words for words, *_ in STREAMS])
def test_streams_that_are_closed_or_full(words, status, message):
    command, _, rest = words.partition(" ")
    program = f"set -o pipefail; {sys.executable} -m twins {command} {rest}"
    # A pipe holds what `list` prints: without a wait, it may end before it is closed.
    ended = subprocess.run(["bash", "-c", program.replace("head -n 1", "(exec <&-; sleep 1)")], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, message)


def test_an_encoding_without_the_characters(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(TINY | {"title": "größer …"}), encoding="utf-8")
    command = [sys.executable, "-m", "twins", "show", str(tmp_path / "x.json")]
    ended = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0 and rb"gr\xf6\xdfer \u2026" in ended.stdout


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x.json: "),
        (b"\xff\xfe", "cannot be read"),
        (b"", "not JSON"),
        (b"[" * 100_000, "x.json: "),
    ],
)
def test_json(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(shared.Error, match=words):
        files.read_json(tmp_path / "x.json")


def test_a_picture_for_which_a_program_would_be_run(tmp_path):
    """Pillow starts Ghostscript for PostScript."""
    Image.new("RGB", (9, 9)).save(tmp_path / "x.eps")
    with pytest.raises(shared.Error, match="not an image that Pillow can read: a drawing"):
        images.read_picture(tmp_path / "x.eps")


def test_tiff_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (11, 9)).save(tmp_path / "x.tiff", exif=exif)
    assert images.picture_size(tmp_path / "x.tiff") == (9, 11) == images.read_picture(tmp_path / "x.tiff").shape[1::-1]


if __name__ == "__main__":
    explode(Path(sys.argv[1]))

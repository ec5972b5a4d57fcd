"""Runs on several machines: here processes on the loopback address, PyTorch's by torchrun, TensorFlow's by TF_CONFIG."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from test_pixels import NETWORK, save_tiles
from test_pixels import RECIPE as PIXELS
from test_runs import NO_JAX, ONE_THREAD, PACKAGES, RECIPE, SPEC, TOLERANCES, Run, without_speed

import shared
import torch_impl
from shared import checks
from shared.data import Data
from shared.folders import Pictures
from twins import ladder, runs, training
from twins.loading import Loader

PLAIN = {  # without batch norm, so that two processes do what one does
    **SPEC,
    "layers": [
        {**layer, "norm": False} if layer["type"] == "basic" else layer
        for layer in SPEC["layers"]
        if layer["type"] != "batch_norm"
    ],
}


class Together:
    """A process of two, which are threads here: what `training` asks of an engine to hear from the other one."""

    def __init__(self, rank, shared_table, barrier, state):
        self.rank, self.processes, self._table, self._barrier, self._state = rank, 2, shared_table, barrier, state

    def state(self):
        return self._state

    def total(self, array):
        self._table[self.rank] = array
        self._barrier.wait(30)
        result = self._table[0] + self._table[1]
        self._barrier.wait(30)
        return result


def in_two(function, *arguments):
    """The results, or the errors, of a function of an engine and of arguments of its own, in each of two processes."""
    table, barrier, results = {}, threading.Barrier(2), {}

    def call(rank):
        state, *others = (argument[rank] for argument in arguments)
        try:
            results[rank] = function(Together(rank, table, barrier, state), *others)
        except shared.Error as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[0], results[1]]


STATE, DATA = {"a": np.arange(3.0)}, Data(None, np.array([1, 2]), None, np.array([0]))
CHANGED = {
    "nothing": ((STATE, STATE), (RECIPE, RECIPE), (DATA, DATA)),
    "where things lie": ((STATE, STATE), (RECIPE, RECIPE | {"data": "/mnt/digits"}), (DATA, DATA)),
    "recipe": ((STATE, STATE), (RECIPE, RECIPE | {"batch": 30}), (DATA, DATA)),
    "data set": ((STATE, STATE), (RECIPE, RECIPE), (DATA, DATA._replace(y_test=np.array([1])))),
    "checkpoint or initial weights": ((STATE, {"a": np.arange(3.0) + 1e-9}), (RECIPE, RECIPE), (DATA, DATA)),
}


def said_of(what):
    """What two processes say that do not have the same; nothing if it is None."""
    return [what and f"process {rank} of 2: not all processes have the same {what}" for rank in range(2)]


@pytest.mark.parametrize("what", CHANGED)
def test_processes_that_are_not_of_one_run(what):
    errors = in_two(training._check_alike, *CHANGED[what])
    alike = what in ("nothing", "where things lie")
    assert [error and f"{error}" for error in errors] == said_of(None if alike else what)


def masked(place, *names):
    """Pictures and masks in a folder that lies in a place; the last is to test on."""
    pictures = Pictures(place, [f"images/{name}.jpg" for name in names])
    paths = np.array([f"{place}/masks/{name}.png" for name in names])
    return Data(pictures[:-1], paths[:-1], pictures[-1:], paths[-1:])


@pytest.mark.parametrize(
    "other, what",
    [
        (("/mnt/tiles", "a", "ä\udcff", "c"), None),
        (("tiles", "a", "ä\udcff", "d"), "data set"),
        (("tiles", "a", "c"), "data set"),
        (("tiles", "ä\udcff", "a", "c"), "data set"),
    ],
)
def test_folders_of_masks_that_are_not_the_same(other, what):
    both = masked("tiles", "a", "ä\udcff", "c"), masked(*other)
    errors = in_two(training._check_alike, (STATE, STATE), (RECIPE, RECIPE), both)
    assert [error and f"{error}" for error in errors] == said_of(what)


@pytest.mark.parametrize(
    "lists", [((), ()), (("a: no image",), ()), (("x: ä\udcff", "y:\nb"), ("z: c", "x: ä\udcff"))], ids=str
)
def test_unreadable_images_are_known_to_all(lists):
    def share(engine, errors):
        loader = Loader(skip=True)
        loader.note(errors)
        training._Run.share_unreadable(SimpleNamespace(engine=engine, loader=loader))
        return [*loader.unreadable]

    for known in in_two(share, (None, None), lists):
        assert {*known} == {*lists[0], *lists[1]} and len(known) == len({*known})


GONE = {
    "torch": RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:30188"
    ),
    "tf": tf.errors.UnavailableError(None, None, "Collective ops is aborted by: The following tasks are unhealthy"),
}
OWN = {"torch": RuntimeError("out of memory"), "tf": tf.errors.ResourceExhaustedError(None, None, "out of memory")}


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_process_that_is_gone(backend):
    """Is told from what this process does wrong itself."""
    engine = PACKAGES[backend].Engine(PACKAGES[backend].build(SPEC))
    for error in (GONE[backend], OWN[backend]):
        with pytest.raises(type(error)), engine._together():
            raise error
    engine.processes = 2
    with (
        pytest.raises(checks.LostProcessError, match="process 0 of 2: the connection to another process is lost"),
        engine._together(),
    ):
        raise GONE[backend]
    with pytest.raises(type(OWN[backend])), engine._together():
        raise OWN[backend]


def test_the_message_of_a_process_that_is_left(twins, tmp_path, monkeypatch):
    def step(*arguments):
        raise checks.LostProcessError("process 0 of 2: the connection to another process is lost")

    monkeypatch.setattr(torch_impl.Engine, "step", step)
    (tmp_path / "tiny.json").write_text(json.dumps(RECIPE))
    status, _, error = twins("train", "tiny.json", "--out", "run", folder=tmp_path)
    assert status == 1 and error.count("\n") == 1 and "Start all processes again, with --resume run, which has" in error


WORKERS = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}


@pytest.mark.parametrize(
    "config, options, words",
    [
        ("{", "", "the environment variable TF_CONFIG is '{', expected only workers, for example {"),
        (WORKERS | {"task": {"type": "worker", "index": 2}}, "", "expected only workers"),
        (WORKERS | {"task": {"type": "chief", "index": 0}}, "", "expected only workers"),
        (WORKERS | {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}, "", "expected only workers"),
        (WORKERS | {"cluster": {"worker": ["a", "b"]}}, "", "expected only workers"),
        (WORKERS, "--devices 2", "--devices is for one process; each worker of TF_CONFIG uses all GPUs of its machine"),
        (WORKERS, "--compile", "TF_CONFIG and --compile cannot be combined"),
    ],
)
def test_mistakes(config, options, words, twins, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    (tmp_path / "tiny.json").write_text(json.dumps(RECIPE))
    status, out, error = twins("train", "tiny.json", "--backend", "tf", *options.split(), folder=tmp_path)
    assert status == 2 and words in error and out == "" and [*tmp_path.iterdir()] == [tmp_path / "tiny.json"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(backend, folder, *options):
    """Two processes of one run, each as on a machine of its own."""
    ports, processes = [free_port() for _ in range(2)], []
    for rank in range(2):
        command, environment = [sys.executable, "-m", "twins", "train", *options], {**os.environ, **ONE_THREAD}
        if backend == "tf":
            addresses = [f"127.0.0.1:{port}" for port in ports]
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            environment, command = environment | {"TF_CONFIG": json.dumps(config)}, [*command, "--backend", "tf"]
        elif backend == "jax":
            joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{ports[0]}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": f"{rank}"}
            environment, command = environment | joined, [*command, "--backend", "jax"]
        else:
            nodes = ["--nnodes", "2", "--node-rank", f"{rank}", "--master-addr", "127.0.0.1", "--master-port", f"{ports[0]}"]
            command[1:2] = ["-m", "torch.distributed.run", *nodes, "--nproc-per-node", "1", "-m"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams))
    return processes


def end(processes):
    """[(status, output, errors)] of processes that are to end by themselves."""
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def trained_by_two(backend, spec, folder):
    """The checkpoint of a run in two processes, of which one writes and prints."""
    (folder / "recipe.json").write_text(json.dumps(RECIPE | {"network": spec}))
    (status, out, error), other = end(start_two(backend, folder, "recipe.json", "--out", backend))
    assert status == 0 and out.count("epoch   1") == 1, error
    assert other[:2] == (0, ""), other
    return training.read_checkpoint(folder / backend)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The checkpoint of a run with batch norm in two processes, for each backend."""
    backends = [*PACKAGES, *(["jax"] if importlib.util.find_spec("jax") else [])]
    return {backend: trained_by_two(backend, SPEC, tmp_path_factory.mktemp(backend)) for backend in backends}


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tf", pytest.param("jax", marks=NO_JAX)])
def test_two_workers_do_what_one_device_does(backend, tmp_path):
    """Without batch norm; PyTorch's processes are in `test_runs.py`."""
    one, found = Run(tmp_path / "one", network=PLAIN).until(), trained_by_two(backend, PLAIN, tmp_path)
    for mine, other in zip(without_speed(one.history), without_speed(found.history), strict=True):
        for key in mine:
            assert ladder.relative(mine[key], other[key]) <= TOLERANCES["losses"], key
    worst = ladder.largest(ladder.between(one.arrays, found.arrays))
    assert worst.value <= TOLERANCES["weights"], worst


@pytest.mark.long
def test_all_frameworks_make_the_same_run_in_two_processes(by_two):
    for backend, found in by_two.items():
        worst = ladder.largest(ladder.between(by_two["torch"].arrays, found.arrays))
        assert worst.value <= TOLERANCES["weights"], (backend, worst)


@pytest.mark.long
@pytest.mark.parametrize(
    "backend, data",
    [("torch", "tiles"), ("tf", "tiles"), *(pytest.param("jax", name, marks=NO_JAX) for name in ("tiles", "digits"))],
)
def test_one_of_two_processes_tests_on_what_the_run_has_not_used(backend, data, tmp_path, monkeypatch):
    """All of it, and as PyTorch does in one process. The tiles are a folder of masks."""
    monkeypatch.chdir(tmp_path)
    for part, numbers in {"train": range(6), "val": range(6, 9), "test": range(9, 12)}.items():
        save_tiles(tmp_path / "tiles" / part, numbers)
    recipe = PIXELS | {"network": NETWORK, "batch": 2} if data == "tiles" else RECIPE | {"holdout": 0.2}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"epochs": 1}))
    (status, out, error), other = end(start_two(backend, tmp_path, "recipe.json", "--out", "run", "--workers", "0", "--json"))
    assert status == 0, error
    assert other[:2] == (0, ""), other
    with runs.start(None, tmp_path / "run", tmp_path / "on", [], 2, "torch") as start:
        alone = runs.scores_on_unseen(torch_impl, start._replace(folder=tmp_path / "run"), Loader())
    for key, value in alone._asdict().items():
        assert json.loads(out)["test"][key] == (value and pytest.approx(value, rel=TOLERANCES["losses"])), key


@pytest.mark.long
@pytest.mark.parametrize("backend, victim", [("torch", 1), ("tf", 0), pytest.param("jax", 1, marks=NO_JAX)])
def test_a_killed_process(backend, victim, by_two, tmp_path):
    """The other one ends with one message, and the run goes on to the same bits."""
    # Epochs enough to be killed in, as the one epoch that the resumed run has.
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE | {"network": SPEC}))
    processes = start_two(backend, tmp_path, "recipe.json", "--out", "run")
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline and None in [process.poll() for process in processes]
        time.sleep(0.005)
    killed = processes[victim].pid
    if backend == "torch":  # torchrun is its parent
        killed = int(subprocess.run(["pgrep", "-P", f"{killed}"], capture_output=True, text=True).stdout.split()[0])
    os.kill(killed, signal.SIGKILL)
    started, left = time.monotonic(), 1 - victim
    status, _, error = end(processes)[left]
    message = f"process {left} of 2: the connection to another process is lost"
    assert status == 1 and error.count(message) == 1 and "--resume run" in error and time.monotonic() - started < 60
    assert backend == "torch" or "Traceback" not in error
    assert training.read_checkpoint(tmp_path / "run").step < 12
    assert [status for status, *_ in end(start_two(backend, tmp_path, "--resume", "run"))] == [0, 0]
    found = training.read_checkpoint(tmp_path / "run")
    assert without_speed(found.history) == without_speed(by_two[backend].history)
    assert all(np.array_equal(found.arrays[name], array) for name, array in by_two[backend].arrays.items())

"""A package in a process of its own, without a framework: what travels, what ends, and what is said when something fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shared.checks import Error, RunError
from twins import remote

KERAS = {"KERAS_BACKEND": "jax"}


class Package:
    """As `keras_impl`, of NumPy alone."""

    def build(self, scale, dtype="float32"):
        return {"scale": np.array(scale, dtype)}

    def load(self, net, state):
        net.update(state)

    def state(self, net):
        return net

    class Engine:
        framework, rank, processes, shares = "JAX", 0, 1, 1

        def __init__(self, net, factor=1):
            self.net, self.factor = net, factor

        def predict(self, images):
            return images * self.net["scale"] * self.factor

        def loss(self, word):
            if word == "end":
                os._exit(1)
            if word == "sleep":
                time.sleep(60)
            kinds = {"mistake": Error, "run": RunError, "file": FileNotFoundError, "bug": ZeroDivisionError}
            kinds["memory"] = type("OutOfMemoryError", (RuntimeError,), {})  # of a framework
            raise kinds[word]("one line\ntwo")

        def state(self):
            return {"variable": os.environ["KERAS_BACKEND"], "kept": len(remote._kept), "process": os.getpid()}


def start(noise=""):
    print(noise)
    os.write(2, noise.encode())
    return Package()


def fail():
    raise Error("JAX is not there")


@pytest.fixture(scope="module")
def package():
    return remote.KerasPackage("JAX", partial(start, "noise"), KERAS)


def test_networks_and_engines_stay_there(package):
    net = package.build(2, dtype="float64")
    engine, other = package.Engine(net), package.Engine(net, factor=3)
    assert (engine.framework, engine.rank, engine.processes, engine.shares) == ("JAX", 0, 1, 1) and engine.net is net
    images = np.arange(4.0)
    assert np.array_equal(engine.predict(images), 2 * images) and np.array_equal(other.predict(images), 6 * images)
    package.load(net, {"scale": np.array(5.0)})  # which both engines see
    assert np.array_equal(engine.predict(images), 5 * images) and package.state(net) == {"scale": 5}
    assert package.state(package.build(1, dtype="float64"))["scale"].dtype == np.float64
    assert engine.channels_first(np.zeros((1, 2, 3, 4))).shape == (1, 4, 2, 3)
    assert engine.channels_first(np.zeros((1, 2))).shape == (1, 2)


def test_calls_are_sent_ahead_and_answered_in_order():
    process = remote.Process("NumPy", start, KERAS)
    for number in range(5):
        process.send(abs, -number)
    assert process.ask(abs, -9) == 0 and [process.result() for _ in range(5)] == [1, 2, 3, 4, 9]


def test_what_nobody_has_any_more_is_dropped(package):
    engine = package.Engine(package.build(1))
    assert engine.state()["kept"] == 3  # with the package
    engine = package.Engine(package.build(1))
    assert engine.state()["kept"] == 3


def test_the_environment_is_that_process_s_alone(package):
    before = os.environ.get("KERAS_BACKEND")
    assert package.Engine(package.build(1)).state()["variable"] == "jax"
    remote.KerasPackage("JAX", start, KERAS)
    assert os.environ.get("KERAS_BACKEND") == before != "jax"


@pytest.mark.parametrize(
    "word, kind, message",
    [
        ("mistake", Error, "one line\ntwo"),
        ("run", RunError, "one line\ntwo"),
        ("file", FileNotFoundError, "one line\ntwo"),
        ("bug", RunError, "JAX: ZeroDivisionError: one line"),
        ("memory", MemoryError, "JAX"),
    ],
)
def test_errors_travel(package, word, kind, message):
    engine = package.Engine(package.build(1))
    with pytest.raises(kind) as error:
        engine.loss(word)
    assert type(error.value) is kind and f"{error.value}" == message
    assert ("in loss" in "".join(getattr(error.value, "__notes__", []))) == (word == "bug")  # the traceback there
    assert engine.predict(2) == 2  # it goes on


def test_a_start_that_fails_is_said_at_the_first_call():
    package = remote.KerasPackage("JAX", fail, KERAS)
    for _ in range(2):
        with pytest.raises(Error, match="JAX is not there"):
            package.build(1)


def test_a_process_that_has_ended_is_said():
    package = remote.KerasPackage("JAX", start, KERAS)
    engine = package.Engine(package.build(1))
    for _ in range(2):
        with pytest.raises(RunError, match="JAX: its process has ended, perhaps because memory ran out"):
            engine.loss("end")


def test_after_an_interrupt_no_call_gets_the_answer_to_another():
    package = remote.KerasPackage("JAX", start, KERAS)
    engine = package.Engine(package.build(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        engine.loss("sleep")
    with pytest.raises(RunError, match="its process has ended"):
        engine.predict(1)


def test_it_prints_nothing(capfd):
    package = remote.KerasPackage("JAX", partial(start, "noise"), KERAS)
    assert package.Engine(package.build(1)).predict(3) == 3
    assert capfd.readouterr() == ("", "")


PARENT = """
import signal
from test_remote import KERAS, remote, start
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    package = remote.KerasPackage("JAX", start, KERAS)
    engine = package.Engine(package.build(1))
    print(engine.state()["process"], flush=True)
    {ends}
"""


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # its parent is gone, and nobody has asked how it ended


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's list of processes")
@pytest.mark.parametrize(
    "ends, number",
    [
        ("pass", None),
        ("raise ValueError", None),
        ("engine.loss('sleep')", signal.SIGKILL),
        ("engine.loss('sleep')", signal.SIGTERM),
        ("engine.loss('sleep')", signal.SIGINT),
    ],
)
def test_it_ends_with_its_parent(ends, number, tmp_path):
    script, here = tmp_path / "parent.py", Path(__file__).parent
    script.write_text(PARENT.format(ends=ends))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{here}:{here.parent}"},
    )  # fmt: skip
    child = int(parent.stdout.readline())
    if number:
        time.sleep(0.5)  # it is in the call
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)  # Ctrl-C is for the whole group
    try:
        _, error = parent.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        parent.kill()  # with which the child ends
        raise
    assert (parent.returncode == 0) == (ends == "pass") and error.count("Traceback") == (parent.returncode in (1, -2)), error
    for _ in range(100):
        if not is_alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it lives on")

"""A separate process for a second Keras backend, since Keras has one per process; and a package of networks in it.

Networks and engines stay in that process. This one has proxies of them, whose methods take and return NumPy arrays by name.
"""

import itertools
import multiprocessing
import os
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from shared import processes
from shared.checks import Error, RunError, is_out_of_memory

from .loading import prepare_worker

ATTRIBUTES = ("framework", "rank", "processes", "shares")  # of an engine, which stay as they are
STARTED = 0  # the number of what the starter returned
_kept: dict[int, Any] = {}  # in the other process: that, networks and engines by number


class Process:
    """A process that does one thing after the other, and ends with this one.

    The starter is a function that can be pickled; what it returns is `started()` there. `environment` is what the process has
    besides that of this one, `title` what messages call it.
    """

    def __init__(self, title: str, starter: Callable[[], Any], environment: Mapping[str, str]) -> None:
        self.title, self.forgotten = title, list[int]()
        context = multiprocessing.get_context("spawn")  # a fork would have the backend of this process
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, title, starter), daemon=True)
        with processes.environment(environment):  # it may import Keras before any function of ours runs there
            self._process.start()
        there.close()
        self._is_ready = False

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of this project returns there. Raises what it raises, and `RunError` if the process is gone."""
        self.send(function, *arguments)
        return self.result()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called there, without waiting; `result` gives what it returns. Raises `RunError` as `ask` does."""
        forgotten, self.forgotten[:] = [*self.forgotten], []
        with self._watched():
            self._connection.send((function, arguments, forgotten))

    def result(self) -> Any:
        """What the first of the functions sent returns whose result has not been taken. Raises an error as `ask` does."""
        if not self._is_ready:
            self._is_ready = True
            self.result()  # of the starter
        with self._watched():
            value, error = self._connection.recv()
        if error is not None:
            raise error
        return value

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            raise RunError(f"{self.title}: its process has ended, perhaps because memory ran out") from None
        except BaseException:  # interrupted: the next question would get the answer to this one
            self.kill()
            raise


class Network:
    """A network in the other process; as an argument of what runs there, it is that network."""

    def __init__(self, process: Process, number: int) -> None:
        self._process, self._number = process, number
        weakref.finalize(self, process.forgotten.append, number).atexit = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _at, (self._number,)


class Engine(Network):
    """`backends.Engine` for an engine in the other process."""

    framework: str

    def __init__(self, process: Process, number: int, net: Network, attributes: Mapping[str, Any]) -> None:
        super().__init__(process, number)
        self.net = net
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: self._process.ask(_call, self._number, name, arguments, options)

    @staticmethod
    def channels_first(output: np.ndarray) -> np.ndarray:
        """An output of a Keras network as (batch, channels, height, width), if it is a map; needs no call to the process."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output


class KerasPackage:
    """`keras_impl` as `starter` returns it in a new `Process`: what comparing and predicting need of `backends.Package`.

    Its start does not wait: the first call does, and raises `Error` if the start has failed.
    """

    def __init__(self, title: str, starter: Callable[[], Any], environment: Mapping[str, str]) -> None:
        self._process = Process(title, starter, environment)
        self._numbers = itertools.count(1)

    def build(self, *arguments: Any, **options: Any) -> Network:
        """`keras_impl.build`."""
        number = next(self._numbers)
        self._process.ask(_make, number, "build", arguments, options)
        return Network(self._process, number)

    def Engine(self, net: Network, *arguments: Any, **options: Any) -> Engine:  # noqa: N802, as in the package
        """`keras_impl.Engine`."""
        number = next(self._numbers)
        attributes = self._process.ask(_make, number, "Engine", (net, *arguments), options)
        return Engine(self._process, number, net, attributes)

    def load(self, net: Network, state: Mapping[str, np.ndarray]) -> None:
        """`keras_impl.load`."""
        self._process.ask(_call, STARTED, "load", (net, state), {})

    def state(self, net: Network) -> Any:
        """`keras_impl.state`."""
        return self._process.ask(_call, STARTED, "state", (net,), {})


def started() -> Any:
    """In the other process, what its starter returned."""
    return _kept[STARTED]


def _serve(connection: Connection, title: str, starter: Callable[[], Any]) -> None:
    """The other process: answer with (result, error) until the connection is closed."""
    prepare_worker()
    devnull = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # frameworks' output is not an answer; errors are sent back
        os.dup2(devnull, number)
    start = _attempt(title, _start, starter)
    connection.send(start)
    while True:
        try:
            function, arguments, forgotten = connection.recv()
        except EOFError:
            return
        for number in forgotten:
            _kept.pop(number, None)
        connection.send(start if start[1] else _attempt(title, function, *arguments))


def _attempt(title: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
    try:
        return function(*arguments), None
    except (Error, OSError, MemoryError) as error:
        return None, error
    except Exception as error:  # perhaps of a class that only this process has
        if is_out_of_memory(error):
            return None, MemoryError(title)
        first = f"{error}".partition("\n")[0]
        told = RunError(f"{title}: {type(error).__name__}: {first}")
        told.add_note(traceback.format_exc())
        return None, told


def _at(number: int) -> Any:
    return _kept[number]


def _start(starter: Callable[[], Any]) -> None:
    _kept[STARTED] = starter()


def _make(number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Keep what a function of the package makes; returns those of the `ATTRIBUTES` that it has."""
    made = _kept[number] = getattr(started(), name)(*arguments, **options)
    return {attribute: getattr(made, attribute) for attribute in ATTRIBUTES if hasattr(made, attribute)}


def _call(number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return getattr(_kept[number], name)(*arguments, **options)

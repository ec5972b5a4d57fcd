"""Reading ahead in other processes: pure functions of their arguments, whose results come in order.

The standard library's process pool, since a batch is a function of its step alone. The obvious alternative, grain, imports JAX
wherever it is installed, which makes each of its processes several times as large.
"""

import collections
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from shared.checks import Error

AHEAD = 2  # results a process that are ready or in the making


class Loader:
    """Up to `workers` processes, started when there is work; without any, this process does the work when it is asked for.

    With `skip`, images that cannot be read are left out, and `unreadable` says why; `waited` counts the seconds that results
    have been waited for.
    """

    def __init__(self, workers: int = 0, skip: bool = False) -> None:
        self.workers, self.skip, self.waited = workers, skip, 0.0
        self.unreadable: dict[str, None] = {}  # in order, each once
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results of a function, of this project's or importable, for each tuple of arguments, in order.

        Raises what the function raises, and `Error` if a process has been killed or cannot start.
        """
        if not self.workers:
            for each in arguments:
                started = time.monotonic()
                result = function(*each)
                self.waited += time.monotonic() - started
                yield result
            return
        arguments = iter(arguments)
        futures: collections.deque[Future[Any]] = collections.deque()
        try:
            while True:
                for each in itertools.islice(arguments, AHEAD * self.workers - len(futures)):
                    futures.append(self._started().submit(function, *each))
                if not futures:
                    return
                started = time.monotonic()
                result = futures.popleft().result()
                self.waited += time.monotonic() - started
                yield result
        except BrokenProcessPool:
            raise Error(
                "a process that reads pictures was killed, perhaps because memory ran out; try fewer with --workers"
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def note(self, errors: Iterable[str]) -> None:
        """Remember images that cannot be read."""
        self.unreadable |= dict.fromkeys(errors)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            try:
                # Spawned, not forked: a copy of a process in which a framework runs is unusable.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.workers, context, prepare_worker)
            except OSError as error:
                raise Error(
                    f"the processes that read pictures cannot be started: {error.strerror}; "
                    "--workers 0 reads in the main process"
                ) from None
        return self._pool

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def default_workers() -> int:
    """One process per core that this process may use, at most 8."""
    return min(cores(), 8)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_worker() -> None:
    """Leave signals from a terminal or a scheduler to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a signal to the whole group, as from `timeout`, would kill this one before its batch is used
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)

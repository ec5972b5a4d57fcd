"""Which of several processes this one is, as the environment says it; and another environment for a while."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .checks import Error


def jax_process() -> tuple[int, int]:
    """(number of this process, how many there are) of those that JAX's variables name; (0, 1) without them.

    Raises `Error` if one of the three is missing or wrong.
    """
    count, number, address = (_variable(name) for name in ("NUM_PROCESSES", "PROCESS_ID", "COORDINATOR_ADDRESS"))
    if not (count or number or address) or count == "1":
        return 0, 1
    if not count.isdecimal() or not int(count):
        raise _mistake("NUM_PROCESSES", "how many processes there are, as 2")
    if not number.isdecimal() or int(number) >= int(count):
        raise _mistake("PROCESS_ID", f"the number of this process, from 0 to {int(count) - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise _mistake("COORDINATOR_ADDRESS", "the machine of process 0 and a free port there, as host1:2222")
    return int(number), int(count)


def _variable(name: str) -> str:
    return os.environ.get(f"JAX_{name}", "")


def _mistake(name: str, expected: str) -> Error:
    found = f"is {_variable(name)!r}" if _variable(name) else "is not set"
    others = "JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS go together"
    return Error(f"the environment variable JAX_{name} {found}, expected {expected}; {others}")


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with changes, for what reads it only once: an import, or a process that starts."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

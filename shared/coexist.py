"""PyTorch and TensorFlow in one process."""

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def isolate_triton(other: str) -> None:
    """Make the process safe for both frameworks if the `other`, "torch" or "tensorflow", is loaded already.

    PyTorch's optimisers and compiler load Triton, and Triton and TensorFlow each bring an LLVM. If TensorFlow is loaded first,
    Triton picks up the symbols of its LLVM, and the process aborts: "Option … registered more than once". Loaded here, with its
    own symbols first, Triton uses its own.
    """
    triton = importlib.util.find_spec("triton") if other in sys.modules else None
    if triton and triton.origin and hasattr(os, "RTLD_DEEPBIND"):
        for library in Path(triton.origin).parent.glob("_C/libtriton*.so"):
            ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)


@contextlib.contextmanager
def silence(stdout: bool = False) -> Iterator[None]:
    """Hide what a framework logs while it starts: it writes to the file descriptor of stderr, whatever its settings say.

    With `stdout`, also what it writes there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    streams = {2: sys.stderr, **({1: sys.stdout} if stdout else {})}
    for stream in streams.values():
        stream.flush()
    before = {number: os.dup(number) for number in streams}
    devnull = os.open(os.devnull, os.O_WRONLY)
    for number in streams:
        os.dup2(devnull, number)
    try:
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(before[number], number)
            os.close(before[number])
        os.close(devnull)

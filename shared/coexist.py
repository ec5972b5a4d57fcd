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

    PyTorch's optimisers and compiler load Triton, and Triton and TensorFlow each bring an LLVM. If TensorFlow comes
    first, Triton uses the symbols of its LLVM, and the process aborts: "Option … registered more than once". Loaded here,
    with its own symbols first, Triton uses its own.
    """
    triton = importlib.util.find_spec("triton") if other in sys.modules else None
    if triton and triton.origin and hasattr(os, "RTLD_DEEPBIND"):
        for library in Path(triton.origin).parent.glob("_C/libtriton*.so"):
            ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what TensorFlow logs while it starts: it writes to the file descriptor of stderr, whatever its settings say."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)

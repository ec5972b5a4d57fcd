"""PyTorch and TensorFlow in one process."""

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path


def prepare(other):
    """Make the process safe for both frameworks, when `other`, "torch" or "tensorflow", is there already.

    PyTorch's optimisers and compiler load Triton, and Triton and TensorFlow each bring an LLVM. When TensorFlow comes
    first, its LLVM's symbols serve Triton too, and the process aborts: "Option … registered more than once". Loaded here,
    with its own symbols first, Triton keeps to its own.
    """
    triton = importlib.util.find_spec("triton") if other in sys.modules else None
    if triton and hasattr(os, "RTLD_DEEPBIND"):
        for library in Path(triton.origin).parent.glob("_C/libtriton*.so"):
            ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)


@contextlib.contextmanager
def silence():
    """Keep what TensorFlow logs while it starts off the screen: it writes below Python, whatever its settings say."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    screen = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)

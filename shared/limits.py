"""The limits of what is read: far above any real network, recipe or file, so that what exceeds them is refused at once."""

import contextlib
import functools
import os
import sys
from pathlib import Path

WHOLE = 2**31 - 1  # a whole number in a spec, a recipe or an option
LAYERS = 10_000  # layers and blocks of a chain, `repeat` unrolled; Xiao et al. 2018 (arXiv:1806.05393) trained so many
NUMBERS = 2**40  # parameters of a network, and numbers in a map, the padding around it included
DEVICES = 1024  # of a run in one process
PAD = 1024  # pixels that augmentation adds on a side
WORD = 100  # characters of a name
GROUPS = 2**14  # in an HDF5 file: Keras has two for each layer, and for ResNet-1202 some 8,000
ARRAYS = 10_000  # in a file whose network is to be guessed: the zoo's have less than 1,500, optimisers several times that
VISITS = 100_000  # modules in a pickled network
HASHED = 2**24  # members of tuples in a pickle, those of the tuples in them counted again
SPEC, JSON = 2**22, 2**26  # bytes of a spec or a recipe, and of any other JSON file or log: in memory, some twenty times that
UNPACKED, RATIO = 2**28, 256  # a file whose content is larger than this many bytes may not be so many times smaller


@functools.cache
def memory() -> int:
    """The bytes of memory that a process can have: the machine's, or its container's where that is less."""
    sizes = [sys.maxsize]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(Path(file).read_text()))
    return min(sizes)

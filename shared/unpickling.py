"""Pickles read without running anything that they name: tensors and arrays are rebuilt, every other object is a placeholder.

A pickle is a program that imports functions by name and calls them. Here no name is ever imported: the few that rebuild
PyTorch's tensors and NumPy's arrays have a stand-in below, and any other becomes a class of `Placeholder`, whose instances
keep what they are given and do nothing.
"""

import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from . import limits
from .checks import Error

# {PyTorch's name of a type of numbers: NumPy's}; `torch.FloatStorage` is the older way to say `torch.float32`.
DTYPES = {
    **{name: np.dtype(name) for name in "float64 float32 float16 int64 int32 int16 int8 uint8".split()},
    **{name: np.dtype(name) for name in "uint16 uint32 uint64 bool complex64 complex128".split()},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in "bfloat16 float8_e4m3fn float8_e5m2".split()},
}
STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
UNREADABLE = {  # {PyTorch's function that rebuilds a tensor which is not a plain array: its kind}
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantised",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "meta, without numbers,",
    "_rebuild_wrapper_subclass": "wrapped",
}


class Placeholder:
    """An object of a class that is not known: takes any arguments, items and state, keeps items and state, and does nothing."""

    described = "an unknown object"
    charge: Callable[..., None] = staticmethod(lambda *_: None)  # see `Unpickler`
    members: dict[Any, Any]  # attributes, and the items of a dictionary
    items: list[Any]  # of a list

    def __new__(cls, *arguments: Any, **options: Any) -> "Placeholder":
        placeholder = super().__new__(cls)
        placeholder.members, placeholder.items = {}, []
        return placeholder

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **options: Any) -> "Placeholder":
        return Placeholder()

    def __setstate__(self, state: Any) -> None:
        for part in state if type(state) is tuple else (state,):
            if isinstance(part, dict):
                self.charge(part)
                self.members.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.members[key] = value

    def append(self, item: Any) -> None:
        """Keep an item of a list."""
        self.items.append(item)

    add = append


class Sealed:
    """An object of ours whose state a pickle must not set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise Error(f"the pickle sets the state of a {type(self).__name__.lower()}")


class Standin(Sealed):
    """Stands for a function that pickles name."""

    __slots__ = ("_function", "_charge")

    def __init__(self, function: Callable[..., Any], charge: Callable[..., None]) -> None:
        self._function, self._charge = function, charge

    def __call__(self, *arguments: Any) -> Any:
        self._charge(*arguments)
        return self._function(*arguments)


class Dtype(Sealed):
    """A type of numbers; None if no array of ours can have it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype


class NumpyDtype(Placeholder):
    """`numpy.dtype("f8", align, copy)`, whose byte order comes as state."""

    def __new__(cls, *arguments: Any) -> "NumpyDtype":
        placeholder = super().__new__(cls)
        assert isinstance(placeholder, NumpyDtype)
        code = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        placeholder.dtype = np.dtype(code) if code[:1] in ("f", "i", "u", "b", "c") and code[1:].isdigit() else None
        return placeholder

    dtype: np.dtype | None

    def __setstate__(self, state: Any) -> None:
        if self.dtype and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Storage(Sealed):
    """The numbers behind tensors, in a file or already read; `read` gives their bytes, `dtype` is None if they are untyped."""

    __slots__ = ("dtype", "start", "read")

    def __init__(self, dtype: np.dtype | None, start: int = 0, read: Callable[[], bytes] | None = None) -> None:
        self.dtype, self.start, self.read = dtype, start, read


class Tensor(Sealed):
    """A tensor as the file describes it; its numbers are read by `array`."""

    __slots__ = ("storage", "dtype", "offset", "size", "stride", "kind")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None, kind: str = "") -> None:
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype
        self.kind = kind

    @property
    def declared(self) -> int:
        """The bytes that `array` says it has, and needs once it is no longer a view; 0 if it has no shape."""
        numbers = all(type(number) is int and 0 <= number < 2**48 for number in self.size)
        return math.prod(self.size) * self.dtype.itemsize if numbers and self.dtype else 0

    def array(self) -> np.ndarray:
        """The numbers, as a view of the storage. Raises `Error` if the tensor is sparse, quantised or beyond its storage."""
        if self.kind:
            raise Error(f"is a {self.kind} tensor, which cannot be read; save it as a dense tensor of floating-point numbers")
        if not isinstance(self.storage, Storage) or self.storage.read is None or self.dtype is None:
            raise Error("is a tensor of a type that cannot be read")
        size, stride = self.size, self.stride
        numbers = (self.offset, *size, *stride)
        if len(size) != len(stride) or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise Error("has an invalid shape")
        flat = np.frombuffer(self.storage.read(), np.uint8)
        flat = flat[: len(flat) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)[
            self.storage.start + self.offset :
        ]
        if 0 in size:
            return np.zeros(size, self.dtype)
        if sum((count - 1) * step for count, step in zip(size, stride, strict=True)) >= len(flat):
            raise Error("has more numbers than its storage")
        steps = [step * self.dtype.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)


class Array(Sealed):
    """An array or a scalar of NumPy's."""

    __slots__ = ("content", "dtype", "shape", "order")

    def __init__(self, *_: Any) -> None:
        self.content: bytes | bytearray | str | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> "Array":
        """Take the bytes of an array, unless they are objects or texts."""
        if isinstance(dtype, NumpyDtype) and dtype.dtype and isinstance(content, (bytes, bytearray, str)):
            self.content, self.dtype, self.order = content, dtype.dtype, "F" if order == "F" else "C"
            self.shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        return self

    @property
    def declared(self) -> int:
        """The bytes of it."""
        return 0 if self.content is None else len(self.content)

    def array(self) -> np.ndarray:
        """The numbers. Raises `Error` if they are none."""
        if self.content is None:
            raise Error("is an array of objects or strings")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        array = np.frombuffer(content, self.dtype)
        return array.reshape(self.shape, order="F" if self.order == "F" else "C")


_LAZY = "lazily negated or conjugated"  # as the metadata of a tensor say


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    dtype = storage.dtype if isinstance(storage, Storage) else None
    kind = "quantised" if isinstance(storage, Placeholder) else _LAZY if rest[2:] and rest[2] else ""
    return Tensor(storage, offset, tuple(size), tuple(stride), dtype, kind)


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    dtype = rest[2].dtype if isinstance(rest[2], Dtype) else None
    return Tensor(storage, offset, tuple(size), tuple(stride), dtype, _LAZY if rest[3:] and rest[3] else "")


def _of_subclass(rebuild: Any, *rest: Any) -> Any:
    return rebuild(*rest[1]) if isinstance(rebuild, Standin) else Placeholder()


def _reconstructed(kind: Any, *_: Any) -> Any:
    return kind() if isinstance(kind, type) and issubclass(kind, Placeholder) else Placeholder()


_ARRAY_RULES: dict[str, Callable[..., Any]] = {
    "_reconstruct": Array,
    "scalar": lambda dtype, content=b"": Array().fill(content, dtype, (), "C"),
    "_frombuffer": lambda content, dtype, shape, order: Array().fill(content, dtype, shape, order),
}
_RULES: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda array, *_: array,
    "torch._tensor._rebuild_from_type": _of_subclass,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1") if encoding == "latin1" else Placeholder(),
    **{
        f"numpy.{package}.{module}.{name}": rule
        for package in ("core", "_core")
        for module in ("multiarray", "numeric")
        for name, rule in _ARRAY_RULES.items()
    },
    **{f"torch._utils.{name}": lambda *_, kind=kind: Tensor(None, 0, (), (), None, kind) for name, kind in UNREADABLE.items()},
}
_PLAIN = {  # not worth a word when skipped
    *(f"builtins.{name}" for name in "set frozenset bytearray complex slice list dict object".split()),
    *("numpy.ndarray", "torch.device", "torch.serialization._get_layout"),
}


_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "FROZENSET", "BINPERSID"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # of the object below what they take


def _check_program(file: Any) -> int:
    """The length in bytes of the pickle that begins here, where the file then is again.

    Raises `Error` for one that would end the process or take all memory: Python's reader makes a list as long as the largest
    number of an object, and the hash of a tuple, as a key of a dictionary, follows the tuples in it without counting.
    What it needs is read off the program: of every tuple on the stack, how many members it has with those of the tuples in it.
    """
    start, work = file.tell(), 0
    stack: list[int | None] = []  # None is a mark
    memo: dict[Any, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if name in _PUTS:
            number = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if number > count:
                raise Error(f"the pickle numbers an object {number:,}, of {count:,} at most")
            memo[number] = stack[-1] or 0
            continue
        if name == "MARK":
            stack.append(None)
            continue
        members: list[int] = []
        takes = len(before)
        if pickletools.markobject in before or (name == "POP" and stack[-1] is None):
            while (member := stack.pop()) is not None:
                members.append(member)
            takes = before.index(pickletools.markobject) if pickletools.markobject in before else 0
        members += [stack.pop() or 0 for _ in range(takes)]
        result = 0
        if name in _TUPLES:
            result = sum(members) + len(members)
        elif name in _GETS:
            result = memo.get(argument, 0)
        elif name in _CHANGES or name == "DUP":
            result = members[-1]
        stack += [result] * len(opcode.stack_after)
        work += sum(members)
        if work > limits.HASHED:
            raise Error("the pickle has tuples in tuples without end")
    end = file.tell()
    file.seek(start)
    return int(end - start)


class Unpickler(pickle.Unpickler):
    """Reads one pickle from a file; `skipped` then lists the classes and functions that became placeholders.

    `load_storage` gives the `Storage` for a persistent id of PyTorch's, ("storage", type, key, location, numbers, …), with the
    type as a `Dtype`; `load_nested` the storage in the bytes of a file inside the pickle.
    """

    def __init__(
        self,
        file: Any,
        load_storage: Callable[[tuple[Any, ...]], Storage] | None = None,
        load_nested: Callable[[bytes], Any] | None = None,
    ) -> None:
        self._budget = limits.UNPACKED + 4 * _check_program(file)
        super().__init__(file, encoding="latin1")
        self._load_storage, self._load_nested = load_storage, load_nested
        self.skipped: list[str] = []

    def _charge(self, *contents: Any) -> None:
        """Count what is copied, which a pickle can have done to one long text any number of times."""
        self._budget -= sum(len(content) for content in contents if isinstance(content, (str, bytes, tuple, list, dict)))
        if self._budget < 0:
            raise Error("the pickle copies the same contents again and again")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name, or a class of `Placeholder`. Nothing is imported."""
        full_name = f"{module}.{name}"
        if full_name == "collections.OrderedDict":
            return Standin(OrderedDict, self._charge)
        if full_name == "numpy.dtype":
            return NumpyDtype
        if full_name in _RULES:
            return Standin(_RULES[full_name], self._charge)
        if full_name == "torch.storage._load_from_bytes" and self._load_nested:
            return Standin(self._load_nested, self._charge)
        if module in ("torch", "torch.cuda", "torch.storage"):
            if name in DTYPES:
                return Dtype(DTYPES[name])
            if name.endswith("Storage"):
                kind = STORAGES.get(name.removesuffix("Storage"))
                if kind or name == "UntypedStorage":
                    return Dtype(DTYPES[kind] if kind else None)
        if full_name.replace("__builtin__", "builtins") not in _PLAIN and full_name not in self.skipped:
            self.skipped.append(full_name)
        return type("Unknown", (Placeholder,), {"described": full_name, "charge": self._charge})

    def persistent_load(self, pid: Any) -> Any:
        """The storage, or in old files the class of a module, for which a persistent id stands."""
        if isinstance(pid, tuple) and len(pid) > 4 and pid[0] == "storage" and self._load_storage:
            return self._load_storage(pid) if isinstance(pid[1], Dtype) else Placeholder()
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        return Placeholder()

"""The networks that `twins diff` names: of files, packages, the zoo, and saved models."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from shared import networks
from shared.checks import Error, first_few, nearest

from .. import backends


def open_network(text: str, arguments: Mapping[str, Any], option: str) -> Any:
    """The network that a text of the command names, built with `arguments`; what is printed meanwhile goes to stderr.

    `file.py:name`, which is run; `package.module:name`; `torch:NAME` and `keras:NAME` of the zoo; a `.keras` file; a file of
    `torch.export`. `option` is that of the arguments, for messages. Raises `Error`, with the nearest name, for what is not a
    network.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if text.endswith(".keras"):
            path = _saved(text, "Keras")  # before a framework starts
            return backends.recorder("keras").load(path)
        if text.endswith((".pt2", ".pt", ".pth")):
            path = _saved(text, "torch.export")
            return backends.recorder("torch").load(path)
        place, _, name = text.rpartition(":") if ":" in text else (text, "", "")
        if not place or not name:
            raise Error(f"{text.removesuffix(':')}: {_unnamed(place)}")
        if place in ("torch", "keras"):
            package = backends.pytorch() if place == "torch" else backends.anyones_keras()
            return _built(functools.partial(package.build, name, seed=0, dtype="float64"), text, arguments, option)
        _start(place)
        module = _run_file(place) if place.endswith(".py") else _import(place)
        return _built(_member(module, place, name), text, arguments, option)


def _unnamed(place: str) -> str:
    """What is said of a text that names a place and no network there, with what was meant if that can be told."""
    parent, _, last = place.rpartition(".")
    expected = "expected file.py:name, package.module:name, torch:NAME, keras:NAME, a .keras file, or a .pt2 file"
    if place in networks.names():
        return f"{expected}; did you mean torch:{place} or keras:{place}?"
    if place.endswith(".py"):
        return f"{expected}; name the network in the file: {place}:NAME"
    if re.fullmatch(r"[^\W\d]\w*(\.\w+)*", place):
        _start(place)
        if _is_module(place):
            return _a_module(_import(place))
        if _is_module(parent):
            return f"{expected}; did you mean {parent}:{last}?"
    return expected


def _is_module(name: str) -> bool:
    try:
        with _beside(Path.cwd()):
            return bool(name) and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of the package that it would be in
        return False


def _a_module(module: ModuleType) -> str:
    """What is said of a module in the place of a network, with the first networks in it."""
    package = module.__name__.partition(".")[0]
    inside = [
        f"{module.__name__}:{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isfunction(value) or (isinstance(value, type) and _is_network(value)))
        if value.__module__.partition(".")[0] == package
    ]
    return f"is a module, expected a network in it: {first_few(inside) or f'{module.__name__}:NAME'}"


def _is_network(kind: type) -> bool:
    return any(base.__name__ in ("Module", "Layer") for base in kind.__mro__)


def _existing(path: str) -> str:
    if not Path(path).is_file():
        raise Error(f"{path}: there is no such file")
    return path


def _saved(path: str, by: str) -> str:
    if not zipfile.is_zipfile(_existing(path)):
        raise Error(f"{path}: is not a zip file, as one saved by {by} would be")
    return path


def _start(place: str) -> None:
    """Start the frameworks that a file or module will, PyTorch first: the other order can end in a crash."""
    text = (
        Path(place).read_text(encoding="utf-8", errors="replace") if place.endswith(".py") and Path(place).is_file() else place
    )
    if re.search(r"\b(torch|torchvision|timm|torch_impl)\b", text):
        backends.pytorch()
    if re.search(r"\b(keras|tensorflow|keras_impl)\b", text):
        backends.anyones_keras()


def _run_file(path: str) -> Any:
    _existing(path)
    spec = importlib.util.spec_from_file_location(f"_diff_{Path(path).stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look there
    with _beside(Path(path).parent), _told(path, f"{path}: the file cannot be run"):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """With a folder's modules importable, as for a script in it."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder.absolute()))


@contextlib.contextmanager
def _told(place: str, what: str) -> Iterator[None]:
    """Any exception of code that is not ours, as one message with the line of that code."""
    try:
        yield
    except Error:
        raise
    except (Exception, SystemExit) as error:
        traceback = error.__traceback__
        frames = inspect.getinnerframes(traceback) if traceback else []
        lines = [frame for frame in frames if frame.filename == place]
        line = f", line {lines[-1].lineno}" if lines else ""
        text = f"{error}".strip().splitlines()
        raise Error(f"{what}{line}: {type(error).__name__}{': ' + text[0][:300] if text else ''}") from None


def _import(name: str) -> Any:
    try:
        with _beside(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if not (name == missing or name.startswith(f"{missing}.")):
            raise Error(f"{name}: needs the module {missing}, which is not installed") from None
        parent, _, last = missing.rpartition(".")
        package = sys.modules.get(parent)
        paths = getattr(package, "__path__", None) if parent else None
        names = [found.name for found in pkgutil.iter_modules(paths)] if paths or not parent else []
        raise Error(f"{name}: there is no module {missing!r}{nearest(last, names)}") from None
    except Exception as error:
        raise Error(f"{name}: cannot be imported: {type(error).__name__}: {error}") from None


def _member(module: Any, place: str, name: str) -> Any:
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [word for word in dir(value) if not word.startswith("_")]
            raise Error(f"{place}: nothing is called {part!r}{nearest(part, names)}")
        value = getattr(value, part)
    return value


def _check_arguments(function: Any, text: str, arguments: Mapping[str, Any], option: str) -> None:
    try:
        known = inspect.signature(function)
    except ValueError:
        return  # it has no signature to check
    try:
        known.bind(**arguments)
    except TypeError as error:
        unknown = next((word for word in arguments if f"{error}".endswith(f"argument {word!r}")), None)
        near = nearest(unknown, known.parameters) if unknown else ""
        raise Error(f"{text}: {error}{near}; pass {option} '{{\"NAME\": VALUE}}'") from None


def _built(value: Any, text: str, arguments: Mapping[str, Any], option: str) -> Any:
    """A network, or what a class or function gives for the arguments."""
    if inspect.ismodule(value):
        raise Error(f"{text}: {_a_module(value)}")
    if _is_network(type(value)):
        if arguments:
            raise Error(f"{text}: is already a network, so {option} does not apply")
        return value
    if not callable(value):
        raise Error(f"{text}: is a {type(value).__name__}, expected a network, or a class or function that returns one")
    _check_arguments(value, text, arguments, option)
    with _told(text.rpartition(":")[0], f"{text}: cannot be built"):
        net = value(**arguments)
    if not _is_network(type(net)):
        raise Error(f"{text}: returns a {type(net).__name__}, expected a PyTorch module or a Keras model")
    return net

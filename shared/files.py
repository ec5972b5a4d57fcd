"""Files that are written whole or not at all, and JSON files read with error messages for people."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checks import Error


def read_json(path: str | Path, called: str | Path | None = None) -> Any:
    """The content of a JSON file.

    Raises `Error`, which calls the file `called` (default: its path), if it cannot be read or an object has a key twice.
    """
    called = called or path
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise Error(f"{called}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{called}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise Error(f"{called}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number too long, or a duplicate key
        raise Error(f"{called}: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            where = dict(pairs).get("name")
            raise Error(f"{f'layer {where!r}: ' if where else ''}duplicate key {key!r}")
    return dict(pairs)


def check_writable(path: str | Path, folder: bool = False) -> None:
    """Raise `Error` if a file, or a `folder`, cannot be written, so that we fail before the work rather than after it."""
    path = Path(path)
    if not path.parent.is_dir():
        raise Error(f"{path}: there is no folder {path.parent}")
    if (path.is_dir() and not folder) or not os.access(path.parent, os.W_OK):
        raise Error(f"{path}: cannot be written")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it at the end of the block. Raises `Error` if it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the same extension: Keras selects the format by it
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise Error(f"{path}: cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder, which replaces an existing one."""
    path = Path(path).resolve()
    temporary, old = (path.with_name(f".{os.getpid()}.{path.name}{ending}") for ending in ("", ".old"))
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        raise Error(f"{path}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporaries(path: str | Path) -> None:
    """Remove temporary files that `atomic_path` left beside `path` in a process that was killed."""
    for temporary in Path(path).parent.glob(f".*.{Path(path).name}"):
        temporary.unlink(missing_ok=True)

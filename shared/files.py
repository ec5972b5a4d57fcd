"""Files that are written whole or not at all, and JSON files read with error messages for people."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import limits
from .checks import Error


def check_readable(path: str | Path, called: str | Path | None = None, most: int | None = None) -> int:
    """The size in bytes of a file that can be read, without opening it: a FIFO would hang, a device never end.

    Raises `Error`, which calls the file `called` (default: its path), if it is missing, no regular file or has more than `most`
    bytes.
    """
    called = called or path
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise Error(f"{called}: there is no such file") from None
    except OSError as error:
        raise Error(f"{called}: cannot be read: {error.strerror}") from None
    except ValueError:  # a zero byte, or half of a surrogate pair
        raise Error(f"{called}: no path can be called so") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise Error(f"{called}: is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, expected a file")
    if most is not None and status.st_size > most:
        raise Error(f"{called}: has {status.st_size:,} bytes, expected at most {most:,}")
    return status.st_size


def read_json(path: str | Path, called: str | Path | None = None, most: int = limits.JSON) -> Any:
    """The content of a JSON file.

    Raises `Error`, which calls the file `called` (default: its path), if it cannot be read, has more than `most` bytes, an
    object has a key twice, or a string is not Unicode.
    """
    called = called or path
    check_readable(path, called, most)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates)
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
        return content
    except UnicodeEncodeError:
        raise Error(f"{called}: a string in it is not Unicode: it has half of a surrogate pair") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{called}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise Error(f"{called}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError as error:
        raise Error(f"{called}: nested too deeply: {error}") from None
    except ValueError as error:  # a number too long, or a duplicate key
        raise Error(f"{called}: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            where = dict(pairs).get("name")
            raise Error(f"{f'layer {where!r}: ' if where else ''}duplicate key {key!r}")
        content[key] = value
    return content


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

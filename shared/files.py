"""Files that are written whole or not at all, and JSON files read with helpful error messages."""

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import limits
from .checks import Error, is_out_of_memory


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
        raise Error(f"{called}: not a valid path") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise Error(f"{called}: is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, expected a file")
    if not os.access(path, os.R_OK):
        raise Error(f"{called}: cannot be read: {os.strerror(errno.EACCES)}")
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
        raise Error(f"{called}: a string in it is not valid Unicode: it has half of a surrogate pair") from None
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
    """Raise `Error` if a file, or a `folder`, cannot be written, so that we fail before the work rather than after it.

    Devices and pipes are refused too, since a file would replace them.
    """
    path = Path(path)
    target = _target(path)
    if not target.parent.is_dir():
        raise Error(f"{path}: there is no folder {target.parent}")
    replaced = target.is_file() or (folder and target.is_dir()) or not target.exists()
    if not replaced or not os.access(target.parent, os.W_OK):
        raise Error(f"{path}: cannot be written")


def check_folder(folder: Path) -> None:
    """Raise `Error` if a folder cannot be made, or written in, so that we fail before the work rather than after it."""
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder}: is a file; --out takes a folder")
    existing = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not existing.is_dir():
        raise Error(f"{folder}: cannot be created: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise Error(f"{folder}: cannot be written: {existing} is not writable")


def _target(path: Path) -> Path:
    """What is written in a path's place: of a link, what it leads to."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path  # `resolve` fails for a link to itself


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it at the end of the block. Raises `Error` if it cannot be written.

    After the block, `path` has the new content even if the power fails; before, the old one. A link stays a link: the file that
    it points to is written.
    """
    target = _target(Path(path))
    if target.exists() and not target.is_file():
        raise Error(f"{path}: cannot be written: it is not a file")
    temporary = target.with_name(f".{os.getpid()}.{target.name}")  # the same extension: Keras selects the format by it
    try:
        yield temporary
        sync(temporary)  # else the name may be on the disk before the content
        os.replace(temporary, target)
        sync(target.parent)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        if is_out_of_memory(error):
            raise
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
        for member in (*temporary.rglob("*"), temporary):
            sync(member)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise Error(f"{path}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder where the system can do that, are on the disk."""
    folder = Path(path).is_dir()
    if folder and (os.name != "posix" or not os.access(path, os.R_OK)):
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network file systems answer
            raise
    finally:
        os.close(descriptor)


def append_text(path: str | Path, text: str) -> None:
    """Add a text to a file, on the disk when this returns. Raises `Error` if it cannot be written."""
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error}") from None


def remove_temporaries(path: str | Path) -> None:
    """Remove temporary files, `.PID.NAME`, that `atomic_path` left beside `path` in processes that are no more."""
    target = _target(Path(path))
    for temporary in target.parent.glob(f".*.{glob.escape(target.name)}"):
        process = temporary.name[1:].partition(".")[0]
        if temporary.name == f".{process}.{target.name}" and process.isdecimal() and not _is_alive(int(process)):
            temporary.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether a process of that id runs; True where that cannot be found out."""
    if os.name != "posix":  # there, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True

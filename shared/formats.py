"""What kind of weights file a file is, by its first bytes: its name says nothing that can be relied on."""

import struct
import zipfile
from pathlib import Path
from typing import Any

from . import limits
from .checks import Error, check_unpacked
from .files import check_readable

SAFETENSORS, SHARDS, KERAS, HDF5, PYTORCH = "safetensors", "an index of shards", ".keras", "HDF5", "PyTorch"
_OTHERS = {  # what people also have in their folders
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array",
    b"<": "a page of HTML or XML, perhaps of a download that failed",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"\x08\x07\x12": "an ONNX graph",
    b"\x08\x08\x12": "an ONNX graph",
}


def kind_of(path: str | Path) -> str:
    """`SAFETENSORS`, `SHARDS` (the JSON index of several files), `KERAS`, `HDF5` or `PYTORCH`.

    Raises `Error`, which says what was found, if it is none of them.
    """
    check_readable(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            size = file.seek(0, 2)
            if start.startswith(b"PK\x03\x04"):
                return _kind_of_zip(path, start)
            if start.startswith(b"\x89HDF\r\n\x1a\n"):
                return HDF5
            if _is_safetensors(start, size):
                return SAFETENSORS
            if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                file.seek(0)
                return _kind_of_json(path, file.read(limits.JSON))
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror}") from None
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle; legacy files begin with one
        return PYTORCH
    if not start:
        raise Error(f"{path}: not a complete file of weights: it is empty")
    found = next(
        (words for magic, words in _OTHERS.items() if start.startswith(magic)), f"a file that begins with {start[:8]!r}"
    )
    raise Error(f"{path}: not a known format of weights: {found}. Expected safetensors, PyTorch's, Keras's or HDF5")


def _is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file begins with the length of a JSON object, and the object."""
    return len(start) > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**32 and size > 9


def _kind_of_zip(path: str | Path, start: bytes) -> str:
    """The kind of a zip file by the names in it, or in a truncated one by the first name."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except Exception:  # truncated: its list of names comes last
        names = [start[30 : 30 + int.from_bytes(start[26:28], "little")].decode("latin1")]
        if names == ["metadata.json"]:
            return KERAS
    if "config.json" in names:
        return KERAS
    if any(name.endswith("data.pkl") or name.endswith("/version") for name in names):
        return PYTORCH
    listed = ", ".join(names[:3])
    hint = ": NumPy's .npz" if names and all(name.endswith(".npy") for name in names) else f" of {listed}"
    raise Error(f"{path}: not a known format of weights: a zip file{hint}. Expected safetensors, PyTorch's, Keras's or HDF5")


def _kind_of_json(path: str | Path, content: bytes) -> str:
    if b'"weight_map"' in content:
        return SHARDS
    raise Error(f'{path}: JSON without "weight_map", so not an index of weights; pass a spec with --network')


def open_zip(file: Any) -> zipfile.ZipFile:
    """A zip file, whose members may be read: they have the sizes that it declares, and are of a compression with bounds.

    Raises `Error` if it holds too much, see `checks.check_unpacked`, and what `zipfile` raises if it is damaged.
    """
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise Error("a zip file not compressed with deflate")
    assert archive.fp is not None
    size = archive.fp.seek(0, 2)
    for member in members:
        check_unpacked(min(member.compress_size, size), member.file_size)
    check_unpacked(size, sum(member.file_size for member in members))
    return archive

"""The weights that torchvision publishes, fetched without it into PyTorch's own cache folder; files already there are used."""

import contextlib
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from .checks import Error
from .files import atomic_path, remove_temporaries
from .spec import Spec

URL = "https://download.pytorch.org/models/"
# {torchvision's name of a network: file of its IMAGENET1K_V1, with the first digits of its SHA-256}; the `url` of the weights
# in torchvision/models/{alexnet,googlenet,resnet,vgg}.py, version 0.29
FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "googlenet": "googlenet-1378be20.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
}
SECONDS = 30  # without a byte, after which a server is given up
CHUNK = 2**17


def file_of(spec: Spec) -> Path:
    """The file of a network's weights on ImageNet as torchvision publishes them, downloaded if it is not in `folder()`.

    "weights" in the spec says what torchvision calls the network. Raises `Error` if it names no such network, or the file
    cannot be fetched.
    """
    publisher, _, name = spec.get("weights", "").partition(" ")
    if publisher != "torchvision":
        hint = f"those of {spec['weights']} can be converted with `twins convert`" if publisher else "the spec names none"
        raise Error(f"imagenet: torchvision publishes no weights of {spec['name']}; {hint}")
    if name not in FILES:
        raise Error(f'imagenet: "weights" in the spec names {name!r}, for which torchvision publishes none')
    path = folder() / FILES[name]
    if not path.is_file():
        _download(path)
    return path


def folder() -> Path:
    """The folder in which `torch.hub` keeps its downloads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def _download(path: Path) -> None:
    """Fetch a file, whole and as its hash says, or raise `Error`; a second process waits for the first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():
                return
            remove_temporaries(path)
            with atomic_path(path) as temporary:
                _fetch(URL + path.name, temporary, path.stem.rpartition("-")[2])
    except (Error, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Error(
            f"{URL}{path.name} could not be fetched: {reason}. Without a network connection, put the file into {path.parent}"
        ) from None


def _fetch(url: str, path: Path, expected: str) -> None:
    """Download into a file, with a progress bar on stderr. Raises `Error` unless its SHA-256 begins as expected."""
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "resnet-twins"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response, path.open("wb") as file:
            with _bar(url, int(response.headers.get("Content-Length") or 0)) as advance:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
    except (OSError, http.client.HTTPException) as error:  # no network, a full disk, a connection that ends
        raise Error(str(error) or type(error).__name__) from None
    found = digest.hexdigest()[: len(expected)]
    if found != expected:
        raise Error(f"invalid hash value, expected {expected}, found {found}")


@contextlib.contextmanager
def _bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or where that is no terminal a line; yields a function to call with how many bytes came."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    screen = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    screen.print(f"Downloading {text}")
    columns = (TextColumn("{task.percentage:>3.0f} %"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=total or None)
        yield lambda count: bar.advance(task, count)

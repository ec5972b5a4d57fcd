"""PyTorch's checkpoint files and torchvision's published weights, as NumPy arrays under the names that they have there."""

import contextlib
import re
import sys
import warnings

import numpy as np
import torch

import shared
from shared.files import atomic_path

NESTED = ("state_dict", "model", "model_state_dict", "net")  # where training scripts put the state dict


def read_pth(path):
    """The arrays of a `.pth`, `.pt` or `.th` file: of the state dict in it, bfloat16 as float32.

    Code in the file is never run. Raises `shared.Error` for a file that cannot be read without, is truncated or has none.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of the storages that old files have
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        code = re.search(r"GLOBAL (\S+)|TorchScript archive", str(error))
        if code:
            raise shared.Error(
                f"{path}: cannot be read without running code, {code[1] or code[0]}; "
                "a file that torch.save(net.state_dict(), path) wrote would be right"
            ) from None
        raise shared.Error(f"{path}: not a complete file of PyTorch's: {_first_line(error)}") from None
    state = _state_dict(content)
    if state is None:
        raise shared.Error(
            f"{path}: has no state dict in it: a dictionary of names and tensors and nothing else, on its own or as {NESTED}"
        )
    try:
        return {name: _array(tensor) for name, tensor in state.items()}
    except (RuntimeError, TypeError) as error:
        raise shared.Error(f"{path}: its tensors cannot be read as arrays: {_first_line(error)}") from None


def write_pth(path, state):
    """Write a state as a state dict: `net.load_state_dict(torch.load(path))` reads it."""
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)


def published(spec):
    """The arrays that torchvision publishes for a network as IMAGENET1K_V1, fetched and checked by its own downloader.

    "weights" in the spec says what torchvision calls the network. Raises `shared.Error` where it does not, or without the file.
    """
    publisher, _, name = spec.get("weights", "").partition(" ")
    if publisher != "torchvision":
        told = f"those of {spec['weights']} can be converted with `twins convert`" if publisher else "the spec names none"
        raise shared.Error(f"imagenet: torchvision publishes no weights of {spec['name']}; {told}")
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).IMAGENET1K_V1
    except (AttributeError, ValueError):
        raise shared.Error(f'imagenet: "weights" in the spec names {name!r}, of which torchvision publishes none') from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where its progress bar is, and no one's results are
            found = weights.get_state_dict(map_location="cpu", progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a wrong checksum, an earlier download that was damaged
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise shared.Error(
            f"{weights.url} could not be fetched: {_first_line(error)}. Without a network, put the file into {folder}"
        ) from None
    return {name: _array(tensor) for name, tensor in found.items()}


def _state_dict(content):
    """The first dictionary of tensors: the content itself, or under a name that training scripts give it."""
    if not isinstance(content, dict):
        return None
    if content and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return content
    inner = (_state_dict(content.get(key)) for key in NESTED)
    return next((state for state in inner if state is not None), None)


def _array(tensor):
    tensor = tensor.detach()
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return (tensor if known else tensor.float()).numpy()


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__

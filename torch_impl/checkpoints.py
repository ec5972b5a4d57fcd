"""PyTorch's checkpoint files and torchvision's published weights, as NumPy arrays under their original names."""

import contextlib
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shared
from shared.files import atomic_path
from shared.spec import Spec
from shared.weights import State

NESTED = ("state_dict", "model", "model_state_dict", "net")  # where training scripts put the state dict


def read_pth(path: str | Path) -> State:
    """The arrays of the state dict in a `.pth`, `.pt` or `.th` file, bfloat16 as float32.

    Code in the file is never run. Raises `shared.Error` if the file cannot be read without, is truncated or has no state dict.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about the storages in old files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        code = re.search(r"GLOBAL (\S+)|TorchScript archive", str(error))
        if code:
            raise shared.Error(
                f"{path}: cannot be read without running code, {code[1] or code[0]}; "
                "expected a file written by torch.save(net.state_dict(), path)"
            ) from None
        raise shared.Error(f"{path}: not a complete file of PyTorch's: {_first_line(error)}") from None
    state = _state_dict(content)
    if state is None:
        raise shared.Error(
            f"{path}: has no state dict in it: a dictionary of only names and tensors, on its own or under {', '.join(NESTED)}"
        )
    try:
        return {name: _array(tensor) for name, tensor in state.items()}
    except (RuntimeError, TypeError) as error:
        raise shared.Error(f"{path}: its tensors cannot be read as arrays: {_first_line(error)}") from None


def write_pth(path: str | Path, state: State) -> None:
    """Write a state as a state dict, for `net.load_state_dict(torch.load(path))`. Raises `shared.Error` if that fails."""
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)


def published(spec: Spec) -> State:
    """The arrays that torchvision publishes for a network as IMAGENET1K_V1, fetched and checked by its own downloader.

    "weights" in the spec says what torchvision calls the network. Raises `shared.Error` if it names no such network, or the
    file cannot be fetched.
    """
    publisher, _, name = spec.get("weights", "").partition(" ")
    if publisher != "torchvision":
        hint = f"those of {spec['weights']} can be converted with `twins convert`" if publisher else "the spec names none"
        raise shared.Error(f"imagenet: torchvision publishes no weights of {spec['name']}; {hint}")
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).IMAGENET1K_V1
    except (AttributeError, ValueError):
        raise shared.Error(f'imagenet: "weights" in the spec names {name!r}, for which torchvision publishes none') from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # as its progress bar: stdout is for results
            tensors = weights.get_state_dict(map_location="cpu", progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a wrong checksum, an earlier download that was damaged
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise shared.Error(
            f"{weights.url} could not be fetched: {_first_line(error)}. Without a network, put the file into {folder}"
        ) from None
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _state_dict(content: Any) -> dict[str, torch.Tensor] | None:
    """The first dictionary of tensors: the content itself, or under one of the names `NESTED`."""
    if not isinstance(content, dict):
        return None
    if content and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return content
    inner = (_state_dict(content.get(key)) for key in NESTED)
    return next((state for state in inner if state is not None), None)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    numpy_has = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return (tensor if numpy_has else tensor.float()).numpy()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

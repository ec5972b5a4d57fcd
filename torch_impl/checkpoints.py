"""Writing PyTorch's checkpoint files, and torchvision's published weights as NumPy arrays; `shared.torch_files` reads files."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch

import shared
from shared.files import atomic_path
from shared.spec import Spec
from shared.weights import State, normalised


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
    return normalised({name: tensor.numpy() for name, tensor in tensors.items()})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

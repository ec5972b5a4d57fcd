"""Writing PyTorch's checkpoint files; `shared.torch_files` reads them."""

from pathlib import Path

import numpy as np
import torch

from shared.files import atomic_path
from shared.weights import State


def write_pth(path: str | Path, state: State) -> None:
    """Write a state as a state dict, for `net.load_state_dict(torch.load(path))`. Raises `shared.Error` if that fails."""
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)

"""The weight format, and the weights that a network starts from.

A state is a dictionary of NumPy arrays under PyTorch's names, in PyTorch's layouts: convolutions (out, in, height, width),
linear layers (out, in), batch norms `weight`, `bias`, `running_mean`, `running_var`. State files are safetensors.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from . import networks, shapes
from .checks import Error
from .files import atomic_path
from .spec import Spec

State = dict[str, np.ndarray]

# {rank: order of the axes}: Keras has (height, width, in, out) and (in, out), PyTorch (out, in, height, width) and (out, in).
TO_PYTORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0)}


def initial(network: str | Path | Spec, seed: int = 0) -> State:
    """The state that both frameworks start from, float32: the same bits for the same seed.

    Convolutions: normal with variance 2 / (out channels x kernel area), He et al. 2015 (arXiv:1502.01852) with fan out, as
    torchvision's ResNets and the DRNs start. Their biases, and linear layers: uniform within 1 / sqrt(fan in), PyTorch's
    default. Gates of `ResidualUnit`: as convolutions, with a bias of -6. Batch norms: the identity. Each array has a generator
    of its own, from the seed and its name, so that a change to one layer does not change the others.
    Raises `Error` as `shared.load`.
    """
    leaves = shapes.leaves(shapes.layers(networks.load(network)))
    origins = {name: (leaf, shape) for leaf in leaves for name, shape in leaf.weights.items()}
    with ThreadPoolExecutor() as pool:  # NumPy draws without holding Python's lock
        return dict(zip(origins, pool.map(lambda name: _drawn(name, *origins[name], seed), origins), strict=True))


def _drawn(name: str, leaf: shapes.Row, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The initial values of one array of a leaf of the network."""
    kind = name.rpartition(".")[2]
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if leaf.type == "batch_norm":
        return np.full(shape, kind in ("weight", "running_var"), np.float32)
    if leaf.type == "gate" and kind == "bias":
        return np.full(shape, -6, np.float32)
    if leaf.type in ("conv", "gate") and kind == "weight":
        out_channels, _, height, width = shape
        array = generator.standard_normal(shape, np.float32)
        array *= np.float32(np.sqrt(2 / (out_channels * height * width)))
        return array
    fan_in = np.prod(leaf.weights[f"{leaf.name}.weight"][1:])
    return (generator.random(shape, np.float32) * 2 - 1) / np.float32(np.sqrt(fan_in))


def randomised(state: State, seed: int = 0) -> State:
    """The state with random values in every batch norm, so that mistaking one of its four arrays for another shows.

    Scale and running variance are uniform in [0.5, 1.5], shift and running mean normal with standard deviation 0.1.
    """
    generator = np.random.default_rng(seed)
    state = dict(state)
    for prefix in [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]:
        for name in ("weight", "bias", "running_mean", "running_var"):
            old = state[prefix + name]
            scales = name in ("weight", "running_var")
            new = generator.uniform(0.5, 1.5, old.shape) if scales else generator.normal(0, 0.1, old.shape)
            state[prefix + name] = new.astype(old.dtype)
    return state


def check_state(state: State, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise one `Error` that lists every array of a state that is missing, unexpected, misshapen or not floating-point.

    `expected` is {name: shape}. PyTorch's `num_batches_tracked` counters are optional: nothing reads them.
    """
    given = {name: np.shape(array) for name, array in state.items() if not name.endswith("num_batches_tracked")}
    wrong = [f"missing: {name} {shapes.text(expected[name])}" for name in expected if name not in given]
    wrong += [f"unexpected: {name} {shapes.text(given[name])}" for name in given if name not in expected]
    wrong += [
        f"not floating-point: {name} is {np.asarray(state[name]).dtype}"
        for name in expected
        if name in given and np.asarray(state[name]).dtype.kind != "f"
    ]
    wrong += [
        f"misshapen: {name} is {shapes.text(given[name])}, expected {shapes.text(expected[name])}"
        for name in expected
        if name in given and given[name] != tuple(expected[name])
    ]
    if wrong:
        raise Error("\n  ".join(["the weights do not fit the network:", *wrong]))


def slots(optimizer: dict[str, Any] | None) -> tuple[str, ...]:
    """PyTorch's names of the arrays that a recipe's optimiser keeps for each weight; none for plain SGD or no optimiser.

    In a state they are called "optimizer.SLOT.NAME OF THE WEIGHT" and have the layout of the weight.
    """
    if not optimizer or (optimizer["name"] == "sgd" and not optimizer.get("momentum")):
        return ()
    return ("momentum_buffer",) if optimizer["name"] == "sgd" else ("exp_avg", "exp_avg_sq")


def save_state(path: str | Path, state: State, about: Any = None) -> None:
    """Write a state as safetensors, with `about`, anything that JSON can hold, as metadata.

    Raises `Error` if the file cannot be written.
    """
    metadata = {"twins": json.dumps(about)} if about else None
    # Not safetensors' own save_file: if killed while writing, it leaves a temporary file with a name that we cannot predict.
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialise({name: np.ascontiguousarray(array) for name, array in state.items()}, metadata))


def read_about(path: str | Path) -> Any:
    """What `save_state` wrote about the state in a file, or None. Raises `Error` if that is no complete safetensors file."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata["twins"]) if "twins" in metadata else None
    except (OSError, SafetensorError, ValueError) as error:
        raise Error(f"{path}: not a complete safetensors file: {error}") from None


def read_state(path: str | Path) -> State:
    """The state in a safetensors file, bfloat16 as float32. Raises `Error` if it is missing, truncated or another format."""
    path = Path(path)
    if not path.is_file():
        raise Error(f"{path}: there is no such file")
    if path.suffix != ".safetensors":
        raise Error(f"{path}: expected a file ending in .safetensors")
    import ml_dtypes  # registers bfloat16 with NumPy

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Error(f"{path}: not a complete safetensors file: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise Error(
            f"{path}: its arrays are of a type that cannot be read, {error}; expected float32, float64, float16 or bfloat16"
        ) from None
    return {name: a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a for name, a in state.items()}

"""The weight format, and the weights that a network starts from.

A state is a dictionary of NumPy arrays under PyTorch's names, in PyTorch's layouts: convolutions (out, in, height, width),
linear layers (out, in), batch norms `weight`, `bias`, `running_mean`, `running_var`. State files are safetensors.
"""

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from . import networks, shapes
from .checks import Error, check_memory, nearest
from .files import atomic_path, check_readable, read_json
from .formats import SHARDS, kind_of
from .interpolation import bilinear_kernel
from .spec import Spec

State = dict[str, np.ndarray]

EMA = "ema."  # in front of the names of averaged weights, in the state of an engine

# {rank: order of the axes}: Keras has (height, width, in, out) and (in, out), PyTorch (out, in, height, width) and (out, in).
TO_PYTORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0)}


def initial(network: str | Path | Spec, seed: int = 0) -> State:
    """The state that both frameworks start from, float32: the same bits for the same seed.

    Convolutions: normal with variance 2 / (out channels x kernel area), He et al. 2015 (arXiv:1502.01852) with fan out, as
    torchvision's ResNets and the DRNs start. Their biases, and linear layers: uniform within 1 / sqrt(fan in), PyTorch's
    default. Gates of `ResidualUnit`: as convolutions, with a bias of -6. Batch norms: the identity. Transposed upsampling:
    bilinear. Each array has a generator of its own, from the seed and its name, so that a change to one layer does not change
    the others.
    Raises `Error` as `shared.load`.
    """
    rows = shapes.layers(networks.load(network))
    shapes.check_fits_memory(rows)
    origins = {name: (leaf, shape) for leaf in shapes.leaves(rows) for name, shape in leaf.weights.items()}
    with ThreadPoolExecutor() as pool:  # NumPy draws without holding Python's lock
        return dict(zip(origins, pool.map(lambda name: _drawn(name, *origins[name], seed), origins), strict=True))


def _drawn(name: str, leaf: shapes.Row, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The initial values of one array of a leaf of the network."""
    kind = name.rpartition(".")[2]
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if leaf.type == "batch_norm":
        return np.full(shape, kind in ("weight", "running_var"), np.float32)
    if leaf.type == "upsample_transposed":
        return np.broadcast_to(bilinear_kernel(shape[-1] // 2), shape).astype(np.float32)
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
    """The state with random values in every batch norm, so that a mix-up of its four arrays shows.

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


def as_arrays(state: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> State:
    """A state of arrays or tensors of any framework as NumPy arrays, which may share their memory; bfloat16 as float32.

    Raises `Error` for a value that is no array.
    """
    arrays = {}
    for name, value in dict(state).items():
        if hasattr(value, "detach"):  # PyTorch's, which may be on a GPU and have gradients; NumPy has no bfloat16
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Error(f"{name} is a {type(value).__name__}, not an array: {error}") from None
        # PyTorch reads only the byte order of the machine.
        native = np.float32 if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("=")
        arrays[name] = array.astype(native, copy=False)
    return arrays


def check_state(state: State, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise one `Error` that lists the arrays of a state that are missing, unexpected, misshapen or not floating-point.

    Of more than ten, it lists ten and counts the others.

    `expected` is {name: shape}. PyTorch's `num_batches_tracked` counters are optional, as nothing reads them.
    """
    given = {name: np.shape(array) for name, array in state.items() if not name.endswith("num_batches_tracked")}
    missing = [f"missing: {name} {shapes.text(expected[name])}" for name in expected if name not in given]
    unexpected = [f"unexpected: {name} {shapes.text(given[name])}" for name in given if name not in expected]
    integers = [
        f"not floating-point: {name} is {np.asarray(state[name]).dtype}"
        for name in expected
        if name in given and np.asarray(state[name]).dtype.kind != "f"
    ]
    misshapen = [
        f"misshapen: {name} is {shapes.text(given[name])}, expected {shapes.text(expected[name])}"
        for name in expected
        if name in given and given[name] != tuple(expected[name])
    ]
    if missing or unexpected or integers or misshapen:
        lines = shortened(missing, unexpected, integers, misshapen)
        if missing and all(".running_" in line for line in missing):
            lines.append("running statistics are in a module's state_dict(), not in its named_parameters()")
        raise Error("\n  ".join(["the weights do not fit the network:", *lines]))


def shortened(*lists: list[str], most: int = 10) -> list[str]:
    """The lines of all lists, or `most` of them, as evenly from each as possible, and how many more there are of each kind.

    A line begins with its kind and a colon.
    """
    counts = [0] * len(lists)
    while sum(counts) < min(most, sum(map(len, lists))):
        shortest = min((number for number in range(len(lists)) if counts[number] < len(lists[number])), key=counts.__getitem__)
        counts[shortest] += 1
    lines = [line for members, count in zip(lists, counts, strict=True) for line in members[:count]]
    rest = [
        f"{len(members) - count} more {members[0].partition(':')[0]}"
        for members, count in zip(lists, counts, strict=True)
        if count < len(members)
    ]
    return [*lines, "and " + ", ".join(rest)] if rest else lines


def slots(optimizer: dict[str, Any] | None) -> tuple[str, ...]:
    """PyTorch's names of the arrays that a recipe's optimiser keeps for each weight; none for plain SGD or no optimiser.

    In a state they are called "optimizer.SLOT.NAME OF THE WEIGHT" and have the layout of the weight.
    """
    if not optimizer or (optimizer["name"] == "sgd" and not optimizer.get("momentum")):
        return ()
    return ("momentum_buffer",) if optimizer["name"] == "sgd" else ("exp_avg", "exp_avg_sq")


SCALER = "optimizer.scaler"  # (3,), in mixed_float16: loss scale, steps since it changed, steps that were skipped


def of_network(state: State, averaged: bool = False) -> State:
    """The arrays of the network in the state of an engine, without what the optimiser keeps: its own, or the averaged ones."""
    if averaged:
        return {name.removeprefix(EMA): array for name, array in state.items() if name.startswith(EMA)}
    return {name: array for name, array in state.items() if not name.startswith(("optimizer.", EMA))}


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
    check_readable(path)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata["twins"]) if "twins" in metadata else None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a complete safetensors file: {error}") from None


def read_state(path: str | Path) -> State:
    """The state in a safetensors file, `normalised`. Raises `Error` if it is missing, truncated or another format."""
    path = Path(path)
    size = check_readable(path)
    try:
        check_memory(size, "its arrays")
    except Error as error:
        raise Error(f"{path}: {error}") from None
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Error(f"{path}: not a complete safetensors file: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise Error(
            f"{path}: its arrays are of a type that cannot be read, {error}; expected float32, float64, float16 or bfloat16"
        ) from None
    try:
        return normalised(state)
    except Error as error:
        raise Error(f"{path}: {error}") from None


def read_shards(path: str | Path) -> list[Path]:
    """The files that the index of a checkpoint in shards names, which lie beside it.

    Raises `Error` if one is missing or elsewhere, or the index is none.
    """
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise Error(f'{path}: expected "weight_map", an object of names and files')
    shards = [Path(path).parent / name for name in dict.fromkeys(names.values())]
    for shard in shards:
        if shard.parent != Path(path).parent or shard.name in ("", ".."):
            raise Error(f"{path}: names {str(shard)!r}, which is not in its folder")
        if not shard.is_file():
            raise Error(f"{path}: its shard {shard.name} is missing")
        if kind_of(shard) == SHARDS:
            raise Error(f"{path}: its shard {shard.name} is itself an index of shards")
    return shards


def normalised(arrays: State) -> State:
    """Arrays of any origin as this project has them: contiguous, in the machine's byte order, float64 or float32.

    Every reader passes its arrays through here. Smaller floating-point numbers become float32, and so do integers, or float64
    where float32 would round them; num_batches_tracked and its like remain integers.
    Raises `Error` for complex numbers, objects and texts.
    """
    state = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        kind = "f" if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") else array.dtype.kind
        if kind not in "fiub":
            raise Error(f"{name} holds {array.dtype.name}, expected floating-point numbers")
        if kind == "f":
            dtype = np.dtype(np.float64 if array.dtype.itemsize >= 8 else np.float32)
        elif array.ndim == 0:  # a counter
            dtype = array.dtype.newbyteorder("=")
        else:
            exact = kind == "b" or not array.size or np.abs(array.astype(np.float64)).max() <= 2**24
            dtype = np.dtype(np.float32 if exact else np.float64)
        array = array.astype(dtype, copy=False)
        ready = array.flags.c_contiguous and array.flags.writeable
        state[name] = array if ready else np.array(array, order="C")
    return state


def not_finite(state: State) -> list[str]:
    """The names of the arrays that hold NaN or infinity."""
    return [name for name, array in state.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]


def under_key(arrays: State, key: str, places: Sequence[str] = ()) -> State:
    """The arrays whose names have `key` before a dot, at the start or inside: `encoder_k` has "module.encoder_k.fc.bias".

    `places` are other keys that there are, for the message. Raises `Error` if there is no such name.
    """
    chosen = {name: array for name, array in arrays.items() if re.search(rf"(^|[./]){re.escape(key)}[./]", name)}
    if not chosen:
        keys = [place for place in places if place] or list(dict.fromkeys(re.split("[./]", name)[0] for name in arrays))
        listed = ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
        raise Error(f"there is nothing under --weights-key {key}{nearest(key, keys)}; it has {listed}")
    return chosen

"""The engine that comparison and training drive: a PyTorch network with its optimiser, in NumPy arrays.

Images are (batch, channels, height, width), labels whole numbers or `Mixed`, or masks as `shared.masks.labels` makes them;
weights and gradients have PyTorch's names and layouts.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import shared
from shared import mixup, recipes, weights
from shared.checks import LostProcessError
from shared.dropout import masks
from shared.masks import IGNORED
from shared.mixup import Labels, Mixed
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from .layers import BatchNorm, Conv, Dropout
from .network import Network, build
from .weights import load, state

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Engine:
    """A network, and in training its optimiser, on the device that the network is on.

    `optimizer` is a recipe's: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}; without one the engine takes no steps.
    `seed` determines the dropout masks. With `mixed`, convolutions and matrix products are in that precision; with
    torch.float16, the loss is scaled by `torch.amp.GradScaler`, which skips steps whose gradients are not finite. With
    `compiled`, `torch.compile` compiles the network. A batch norm whose weight needs no gradient is frozen: it keeps its
    running statistics and normalises by them. If torchrun has started several processes, each takes one of the `shares` of
    every batch: `step` gets that share alone, the images rank, rank + processes, … of the batch, and raises
    `shared.checks.LostProcessError` if another process is gone.

    `label_smoothing` and `class_weights` are those of `torch.nn.functional.cross_entropy`; it is each device's share of each
    batch that is divided by the weights of its labels. A step takes the mean gradient of `accumulate` batches,
    each with batch statistics and dropout masks of its own. With `ema`, the engine keeps an average of
    all arrays of the network, by timm's rule: it starts as they do, and each step makes it ema average + (1 - ema) array.
    """

    framework = "PyTorch"

    def __init__(
        self, net: Network, optimizer: dict[str, Any] | None = None, seed: int = 0, mixed: "torch.dtype | None" = None,
        compiled: bool = False, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None, accumulate: int = 1,
        ema: float | None = None,
    ) -> None:  # fmt: skip
        self.net, self.seed, self.mixed = net, seed, mixed
        self.label_smoothing, self.accumulate, self.ema = label_smoothing, accumulate, ema
        self.class_weights = None if class_weights is None else self._tensor(np.array(class_weights))
        self.average = {name: tensor.detach().clone() for name, tensor in self._arrays().items()} if ema else {}
        self.dropouts = {name: layer for name, layer in net.named_modules() if isinstance(layer, Dropout)}
        self.frozen = self._frozen()
        self.waiting: list[str] = []  # weights that `freeze` keeps until `thaw`
        self.passes = 0  # in training mode: each has dropout masks of its own
        self.rank = 0  # of `processes`
        self.processes = self.shares = 1
        self._compiled = self._net = torch.compile(net) if compiled else net
        self.weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        self.slots = weights.slots(optimizer)
        self.optimizer: Any = None
        self.scaler: Any = None
        self.skipped = 0  # steps
        self.clip = {key: value for key, value in (optimizer or {}).items() if key.startswith("clip_")}
        if optimizer:
            self.optimizer = _optimizer(optimizer, net.spec, self.weights)
            self.scaler = torch.amp.GradScaler(self._device().type, enabled=mixed == torch.float16)
            if distributed.is_initialized():
                self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
                self.shares = self.processes
                self._net = self._of_all_processes()

    def freeze(self, layers: Sequence[str]) -> None:
        """Keep layers unchanged until `thaw`, running statistics included; the optimiser still has slots for their weights."""
        prefixes = tuple(f"{name}." for name in layers)
        self.waiting = [name for name in self.weights if name.startswith(prefixes)]
        self._set_waiting(False)

    def thaw(self, step: int) -> None:
        """Train the frozen layers from this step of the run on: Adam's corrections count their steps from here."""
        self._set_waiting(True)
        for name in self.waiting:
            slots = self.optimizer.state.get(self.weights[name], {})
            if "step" in slots:
                slots["step"] = torch.tensor(float(self.passes // self.accumulate - step))
        self.waiting = []

    def _set_waiting(self, trains: bool) -> None:
        for name in self.waiting:
            self.weights[name].requires_grad_(trains)
            self.weights[name].grad = None
        self.frozen = self._frozen()
        if self.shares > 1:
            self._net = self._of_all_processes()

    def _frozen(self) -> list[BatchNorm]:
        return [m for m in self.net.modules() if isinstance(m, BatchNorm) and not m.weight.requires_grad]

    def _of_all_processes(self) -> nn.Module:
        """The network, whose processes exchange the gradients of what trains now."""
        unused = any(layer.get("shortcut") == "unused" for layer in self.net.spec["layers"])
        return torch.nn.parallel.DistributedDataParallel(self._compiled, find_unused_parameters=unused)

    def step(self, images: np.ndarray, labels: Labels, learning_rate: float | None = None) -> tuple[float, int]:
        """One training step: (mean loss before it, number of correctly classified images, or pixels).

        A mixed image counts as correct if it gets the label of the image with the larger share.
        """
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate * group["factor"]
        self.optimizer.zero_grad()
        with self._together():
            return self._step(images, labels)

    def _step(self, images: np.ndarray, labels: Labels) -> tuple[float, int]:
        first, size = labels.first if isinstance(labels, Mixed) else labels, len(images) // self.accumulate
        passes = []
        for number in range(self.accumulate):
            place = slice(number * size, (number + 1) * size)
            with self._gradients_added(number):
                loss, logits = self._loss(images[place], mixup.part(labels, place))
                self.scaler.scale(loss / self.accumulate).backward()
            passes.append((loss.detach(), logits.detach().argmax(1), first[place]))
        self._update()
        # Only now, since it waits for a GPU.
        sums = np.sum([(loss.item(), (found.cpu().numpy() == true).sum()) for loss, found, true in passes], axis=0)
        loss_sum, correct = self.total(sums)
        return float(loss_sum) / self.shares / self.accumulate, int(correct)

    def loss(self, images: np.ndarray, labels: Labels) -> float:
        """The mean loss in training mode, which updates the running statistics."""
        with torch.no_grad():
            return self._loss(images, labels)[0].item()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, (batch, classes), or (batch, classes, height, width) if the network ends in a map."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return _numpy(self.net(self._tensor(images)))

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """(batch, classes, height, width) in evaluation mode. Raises `shared.Error` if the network has no class maps."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return _numpy(self.net.class_maps(self._tensor(images)))

    def dense_class_maps(self, images: np.ndarray) -> np.ndarray:
        """The class maps at the size of the images, (batch, classes, height, width), in evaluation mode."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return _numpy(self.net.dense_class_maps(self._tensor(images)))

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """{layer name: output} in evaluation mode, with PyTorch's axes."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images: np.ndarray, labels: Labels) -> dict[str, np.ndarray]:
        """{name: gradient} of the loss in training mode; the gradient of the images is called "input". Takes no step.

        As every pass in training mode does, it updates the running statistics of batch norms.
        """
        images = self._tensor(images).requires_grad_()
        self.net.zero_grad()
        self._loss(images, labels)[0].backward()
        tensors = {"input": images, **self.weights}
        return {n: _numpy(torch.zeros_like(t) if t.grad is None else t.grad) for n, t in tensors.items()}

    def unit_gradients(self, images: np.ndarray, units: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """{layer: gradient of its unit with respect to the images, in their shape}, in evaluation mode.

        `units` has the (row, column) of each layer's. The unit of an image is the channel with the largest activation there: a
        ReLU that outputs 0 would have no gradient.
        """
        self.net.eval()
        inputs = self._tensor(images).requires_grad_()
        outputs = self.net.activations(inputs)
        largest = {name: outputs[name][:, :, row, column].amax(1).sum() for name, (row, column) in units.items()}
        return {name: _numpy(torch.autograd.grad(value, inputs, retain_graph=True)[0]) for name, value in largest.items()}

    def state(self) -> State:
        """The weights, what the optimiser and the scaler of the loss keep, and the average.

        They are named as by `shared.weights.slots`, `shared.weights.SCALER` and "ema.…".
        """
        arrays = state(self.net)
        if self.scaler and self.scaler.is_enabled():
            kept = self.scaler.state_dict()
            arrays[weights.SCALER] = np.array([kept["scale"], kept["_growth_tracker"], self.skipped], np.float32)
        arrays |= {f"{weights.EMA}{name}": _numpy(tensor.clone()) for name, tensor in self.average.items()}
        for slot in self.slots:
            for name, weight in self.weights.items():
                array = self.optimizer.state.get(weight, {}).get(slot)  # None before the first step, and without a gradient
                arrays[f"optimizer.{slot}.{name}"] = _numpy(torch.zeros_like(weight) if array is None else array.clone())
        return arrays

    def load(self, arrays: State, steps: int = 0) -> None:
        """Resume after `steps` steps, when `state` gave these arrays; an optimiser or average without arrays starts afresh.

        Raises `shared.Error` if the weights do not fit the network.
        """
        load(self.net, weights.of_network(arrays))
        self.passes = steps * self.accumulate
        for name, tensor in self._arrays().items() if self.ema else ():
            array = arrays.get(weights.EMA + name)
            self.average[name].copy_(tensor.detach() if array is None else torch.from_numpy(np.array(array)))
        self.skipped = 0
        if self.optimizer:
            self.optimizer.state.clear()
            self._load_scaler(arrays.get(weights.SCALER))
        for name, weight in self.weights.items():
            saved = {slot: arrays.get(f"optimizer.{slot}.{name}") for slot in self.slots}
            # In the weight's memory format: where the two differ, every step takes longer.
            slots = {
                slot: torch.empty_like(weight).copy_(torch.from_numpy(np.array(array)))
                for slot, array in saved.items()
                if array is not None
            }
            if slots:
                counter = {"step": torch.tensor(float(steps - self.skipped))} if "exp_avg" in slots else {}
                self.optimizer.state[weight] = counter | slots

    def _load_scaler(self, array: np.ndarray | None) -> None:
        """Resume with the scale of the loss that an array of `state` has, or with GradScaler's first."""
        scaler = self.scaler = torch.amp.GradScaler(self._device().type, enabled=self.mixed == torch.float16)
        if scaler.is_enabled() and array is not None:
            scale, since, self.skipped = float(array[0]), int(array[1]), int(array[2])
            scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": since})

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """In this context the network holds the average, for evaluation only."""
        arrays = self._arrays()
        own = {name: tensor.detach().clone() for name, tensor in arrays.items()}
        try:
            for name, average in self.average.items():
                arrays[name].data.copy_(average)
            yield
        finally:
            for name, tensor in own.items():
                arrays[name].data.copy_(tensor)

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, float64 if there are several. Raises an error as `step` does."""
        if self.processes == 1:
            return array
        tensor = torch.from_numpy(np.array(array, np.float64)).to(self._device())
        with self._together():
            distributed.all_reduce(tensor)
            return tensor.cpu().numpy()

    @staticmethod
    def channels_first(output: np.ndarray) -> np.ndarray:
        """An output of the network as (batch, channels, height, width), if it is a map."""
        return output

    def _arrays(self) -> dict[str, Tensor]:
        """All arrays of the network, running statistics included."""
        tensors = self.net.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """A context in which processes wait for one another."""
        try:
            yield
        except RuntimeError as error:
            if self.processes == 1 or not ("gloo" in f"{error}" or "NCCL" in f"{error}"):
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.processes}: the connection to another process is lost"
            ) from None

    def _gradients_added(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """The context of a backward pass: processes exchange gradients after the last of those that a step accumulates."""
        return self._net.no_sync() if self.shares > 1 and number < self.accumulate - 1 else contextlib.nullcontext()

    def _update(self) -> None:
        """Update the weights by their gradients, and what follows the weights."""
        before = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        if "clip_norm" in self.clip:
            nn.utils.clip_grad_norm_(self.weights.values(), self.clip["clip_norm"])
        if "clip_value" in self.clip:
            nn.utils.clip_grad_value_(self.weights.values(), self.clip["clip_value"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        is_skipped = self.scaler.get_scale() < before
        self.skipped += is_skipped
        if self.shares > 1:
            self._average_statistics()
        if self.ema and not is_skipped:
            for name, tensor in self._arrays().items():
                self.average[name].lerp_(tensor.detach(), 1 - self.ema)

    def _loss(self, images: "np.ndarray | Tensor", labels: Labels) -> tuple[Tensor, Tensor]:
        """The loss and the logits of a batch, or of this process's share of one, in training mode."""
        self.net.train()
        for layer in self.frozen:
            layer.eval()
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        whole = (len(images) * self.processes, *images.shape[1:])
        for name, array in masks(self.net.spec, rates, whole, self.passes, self.seed).items():
            self.dropouts[name].mask = self._tensor(array[self.rank :: self.processes])
        self.passes += 1
        images = self._tensor(images)
        try:
            with self._autocast():
                logits = self._net(images)
        finally:
            for layer in self.dropouts.values():
                layer.mask = None
        logits = logits.to(images.dtype)
        return self._cross_entropy(logits, labels), logits

    def _cross_entropy(self, logits: Tensor, labels: Labels) -> Tensor:
        """The loss for logits."""
        if isinstance(labels, Mixed):
            first, second = (self._cross_entropy(logits, some) for some in (labels.first, labels.second))
            return labels.share * first + (1 - labels.share) * second
        if labels.ndim > 1 and (labels == IGNORED).all():  # the mean over no pixel would be NaN
            return 0 * logits.sum()
        target = torch.from_numpy(labels).to(logits.device)
        return F.cross_entropy(logits, target, self.class_weights, ignore_index=IGNORED, label_smoothing=self.label_smoothing)

    def _average_statistics(self) -> None:
        """Replace the running statistics by their mean over all processes, as Keras does with several devices."""
        buffers = [buffer for name, buffer in self.net.named_buffers() if ".running_" in name]
        if buffers:
            vector = torch.cat([buffer.flatten() for buffer in buffers])
            distributed.all_reduce(vector)
            for buffer, mean in zip(buffers, vector.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer) / self.shares)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        device = self._device().type
        return torch.autocast(device, self.mixed) if self.mixed else contextlib.nullcontext()

    def _tensor(self, images: "np.ndarray | Tensor") -> Tensor:
        """An array in the network's precision and on its device; as it is, if the network has no weights."""
        tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(images)
        weight = next(self.net.parameters(), None)
        return tensor if weight is None else tensor.to(weight)

    def _device(self) -> torch.device:
        return next(self.net.parameters(), torch.empty(0)).device


def trainer(spec: Spec, recipe: Recipe, compiled: bool = False) -> Engine:
    """An engine that trains a new network by a recipe, as `shared.recipes.load` gives it, on the GPU if there is one.

    In each of several processes that torchrun has started, it is the engine of that process. Raises `shared.Error` if these
    are more than the GPUs, or there is no compiler for `compiled`.
    """
    launched, gpus = distributed.is_torchelastic_launched(), torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched else 1
    if 0 < gpus < processes:
        raise shared.Error(f"torchrun has started {processes} processes, but there are {gpus} GPUs")
    if compiled:
        _check_compiler(gpus)
    if launched and not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except (ValueError, RuntimeError) as error:
            raise shared.Error(f"the processes of torchrun cannot reach one another: {error}") from None
    precision, seed = recipe["precision"], recipe["seed"]
    net = build(spec, seed, "float64" if precision == "float64" else "float32")
    for name in recipes.kept(recipe, spec):
        net.get_submodule(name).requires_grad_(False)
    if precision != "float64" and (gpus or not any(map(_crashes_channels_last, net.modules()))):
        net.to(memory_format=torch.channels_last)  # faster on CPUs and GPUs, except in float64
    net.to(device())
    options = recipes.engine_options(recipe)
    mixed = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(precision)
    engine = Engine(net, recipe["optimizer"], seed, mixed, compiled, **options)
    if "thaw" in recipe:
        engine.freeze(recipes.frozen(recipe, spec))
    return engine


def device() -> torch.device:
    """What this process computes on for speed: the GPU if there is one, and with torchrun its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.get_node_local_rank(0) if distributed.is_initialized() else 0)


def _check_compiler(gpus: int) -> None:
    """Raise `shared.Error` unless there is the compiler that `torch.compile` runs: Triton's, on a GPU, is of C."""
    kind, variable, known = ("C", "CC", ("gcc", "clang")) if gpus else ("C++", "CXX", ("g++",))
    if not any(map(shutil.which, [os.environ[variable]] if variable in os.environ else known)):
        raise shared.Error(
            f"torch.compile needs a {kind} compiler: install {known[0]}, or name another in the environment variable {variable}"
        )


def _optimizer(optimizer: dict[str, Any], spec: Spec, named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a recipe, with a group of parameters for each `recipes.groups`, whose "factor" is that of the rate."""
    own = ("name", "learning_rate", "no_decay", "rates", "clip_norm", "clip_value")
    options = {key: value for key, value in optimizer.items() if key not in own}
    groups: list[dict[str, Any]] = []
    for factor, decays, names in recipes.groups(optimizer, spec, named):
        group = {"params": [named[name] for name in names], "factor": factor, "lr": optimizer["learning_rate"] * factor}
        groups.append(group if decays else group | {"weight_decay": 0.0})
    return OPTIMIZERS[optimizer["name"]](groups, optimizer["learning_rate"], **options)


def _crashes_channels_last(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose training with channels last may crash PyTorch on the CPU.

    On some processors oneDNN writes past the gradient of a strided 1x1 kernel with few input channels (observed below 16).
    """
    return isinstance(layer, Conv) and layer.kernel_size == (1, 1) and layer.stride > (1, 1) and layer.in_channels < 16


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().cpu().numpy()

"""What the comparison and the training loop drive: a PyTorch network with its optimiser, in NumPy arrays.

Images come as (batch, channels, height, width), labels as whole numbers; weights and gradients have PyTorch's names.
"""

import contextlib
import os
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from torch import distributed

import shared
from shared import recipes, weights
from shared.dropout import masks

from .layers import BatchNorm, Conv, Dropout
from .network import build
from .weights import load, state

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Engine:
    """A network, and in training its optimiser, on the device where the network is.

    `optimizer` is a recipe's: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}; without one the engine takes no steps.
    `seed` is of what dropout drops. With `mixed`, convolutions and matrix products are in bfloat16. With `compiled`,
    `torch.compile` compiles the network. A batch norm whose weight needs no gradient is frozen: it keeps its running
    statistics and normalises by them. Of several processes that torchrun has started, each takes one of the `shares` of
    every batch.
    """

    framework = "PyTorch"

    def __init__(self, net, optimizer=None, seed=0, mixed=False, compiled=False):
        self.net, self.seed, self.mixed = net, seed, mixed
        self.dropouts = {name: layer for name, layer in net.named_modules() if isinstance(layer, Dropout)}
        self.frozen = [m for m in net.modules() if isinstance(m, BatchNorm) and not m.weight.requires_grad]
        self.passes = 0  # in training mode, which dropout counts
        self.rank = 0  # of `processes`
        self.processes = self.shares = 1
        self._net = torch.compile(net) if compiled else net
        self.weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        self.slots, self.optimizer = weights.slots(optimizer), None
        if optimizer:
            options = {key: value for key, value in optimizer.items() if key not in ("name", "learning_rate")}
            self.optimizer = OPTIMIZERS[optimizer["name"]](self.weights.values(), optimizer["learning_rate"], **options)
            if distributed.is_initialized():
                self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
                self.shares = self.processes
                unused = any(layer.get("shortcut") == "unused" for layer in net.spec["layers"])
                self._net = torch.nn.parallel.DistributedDataParallel(self._net, find_unused_parameters=unused)

    def step(self, images, labels, learning_rate=None):
        """One training step; returns the mean cross-entropy before it, and how many of the images were classified right."""
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        loss, logits = self._loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = int((logits.argmax(1).cpu().numpy() == self._share(labels)).sum())
        if self.shares == 1:
            return loss.item(), right
        self._average()
        total = self.total(np.array([loss.item(), right]))
        return float(total[0]) / self.shares, int(total[1])

    def loss(self, images, labels):
        """The mean cross-entropy in training mode, in which running statistics move."""
        with torch.no_grad():
            return self._loss(images, labels)[0].item()

    def predict(self, images):
        """Logits in evaluation mode."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return _numpy(self.net(self._tensor(images)))

    def class_maps(self, images):
        """(batch, classes, height, width) in evaluation mode."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return _numpy(self.net.class_maps(self._tensor(images)))

    def activations(self, images):
        """{layer name: output} in evaluation mode, as PyTorch gives it."""
        self.net.eval()
        with torch.no_grad(), self._autocast():
            return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images, labels):
        """{name: gradient} of the loss in training mode, and the image's as "input". Takes no step.

        As in every pass in training mode, the running statistics of batch norms move.
        """
        images = self._tensor(images).requires_grad_()
        self.net.zero_grad()
        self._loss(images, labels)[0].backward()
        tensors = {"input": images, **self.weights}
        return {n: _numpy(torch.zeros_like(t) if t.grad is None else t.grad) for n, t in tensors.items()}

    def state(self):
        """The weights and, in training, what the optimiser keeps besides, as `shared.weights.slots` names it."""
        arrays = state(self.net)
        for slot in self.slots:
            for name, weight in self.weights.items():
                known = self.optimizer.state.get(weight, {}).get(slot)  # nothing before the first step, or without a gradient
                arrays[f"optimizer.{slot}.{name}"] = _numpy(torch.zeros_like(weight) if known is None else known.clone())
        return arrays

    def load(self, arrays, steps=0):
        """Take up a run where `state` gave these arrays, after as many steps; without an optimiser's, that begins anew."""
        load(self.net, {name: array for name, array in arrays.items() if not name.startswith("optimizer.")})
        self.passes = steps
        if self.optimizer:
            self.optimizer.state.clear()
        for name, weight in self.weights.items():
            names = [slot for slot in self.slots if f"optimizer.{slot}.{name}" in arrays]
            slots = {slot: torch.from_numpy(np.array(arrays[f"optimizer.{slot}.{name}"])).to(weight) for slot in names}
            if slots:
                counted = {"step": torch.tensor(float(steps))} if "exp_avg" in slots else {}
                self.optimizer.state[weight] = counted | slots

    def total(self, array):
        """The sum of an array over all processes."""
        if self.shares == 1:
            return array
        tensor = torch.from_numpy(np.array(array, np.float64)).to(next(self.net.parameters()).device)
        distributed.all_reduce(tensor)
        return tensor.cpu().numpy()

    @staticmethod
    def channels_first(output):
        """A map, as the network gives it, as (batch, channels, height, width)."""
        return output

    def _loss(self, images, labels):
        """The loss, and the logits, of this process's share of a batch."""
        self.net.train()
        for layer in self.frozen:
            layer.eval()
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        for name, array in masks(self.net.spec, rates, images.shape, self.passes, self.seed).items():
            self.dropouts[name].mask = self._tensor(self._share(array))
        self.passes += 1
        images = self._tensor(self._share(images))
        try:
            with self._autocast():
                logits = self._net(images)
        finally:
            for layer in self.dropouts.values():
                layer.mask = None
        logits = logits.to(images.dtype)
        return F.cross_entropy(logits, torch.from_numpy(self._share(labels)).to(images.device)), logits

    def _share(self, batch):
        return batch[self.rank :: self.shares] if self.shares > 1 else batch

    def _average(self):
        """Make the running statistics the mean of all processes', as Keras does with several devices."""
        buffers = [buffer for name, buffer in self.net.named_buffers() if ".running_" in name]
        if buffers:
            vector = torch.cat([buffer.flatten() for buffer in buffers])
            distributed.all_reduce(vector)
            for buffer, mean in zip(buffers, vector.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer) / self.shares)

    def _autocast(self):
        device = next(self.net.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.mixed else contextlib.nullcontext()

    def _tensor(self, images):
        return (images if isinstance(images, torch.Tensor) else torch.from_numpy(images)).to(next(self.net.parameters()))


def trainer(spec, recipe, compiled=False):
    """An engine that trains a new network by a recipe, as `shared.recipes.load_recipe` gives it, on the GPU if there is one.

    In a process of several that torchrun has started, the engine is one of as many. Raises `shared.Error`.
    """
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if distributed.is_torchelastic_launched() and 0 < gpus < processes:
        raise shared.Error(f"torchrun has started {processes} processes, but there are {gpus} GPUs")
    if compiled and not gpus and not shutil.which(os.environ.get("CXX", "g++")):
        raise shared.Error("torch.compile needs a C++ compiler: g++, or what CXX names")
    if distributed.is_torchelastic_launched() and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    precision, seed = recipe["precision"], recipe["seed"]
    net = build(spec, seed, "float64" if precision == "float64" else "float32")
    for name in recipes.frozen(recipe, spec):
        net.get_submodule(name).requires_grad_(False)
    if precision != "float64" and (gpus or not any(map(_narrow, net.modules()))):
        net.to(memory_format=torch.channels_last)  # quicker but in float64, on the CPU as on a GPU
    if torch.cuda.is_available():
        net.to(torch.device("cuda", distributed.get_node_local_rank(0) if distributed.is_initialized() else 0))
    return Engine(net, recipe["optimizer"], seed, precision == "mixed_bfloat16", compiled)


def _narrow(layer):
    """Whether a layer is a convolution that PyTorch 2.15 on the CPU may not train with the channels last.

    oneDNN then writes behind the gradient of a strided 1x1 kernel with few input channels (seen below 16): the process dies.
    """
    return isinstance(layer, Conv) and layer.kernel_size == (1, 1) and layer.stride > (1, 1) and layer.in_channels < 16


def _numpy(tensor):
    return tensor.detach().double().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().cpu().numpy()

"""What the comparison and the training loop drive: a PyTorch network with its optimiser, in NumPy arrays.

Images come as (batch, channels, height, width), labels as whole numbers; weights and gradients have PyTorch's names.
"""

import torch
import torch.nn.functional as F

from shared.dropout import kept

from .layers import Dropout
from .weights import state


class Engine:
    """A network in training by stochastic gradient descent with momentum, on the device where the network is."""

    framework = "PyTorch"

    def __init__(self, net, learning_rate=0.1, momentum=0.9):
        self.net = net
        self.dropouts = {name: layer for name, layer in net.named_modules() if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode, which dropout counts
        self.optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum)

    def step(self, images, labels):
        """One training step; returns the mean cross-entropy before it."""
        loss = self._loss(self._tensor(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def loss(self, images, labels):
        """The mean cross-entropy in training mode, in which running statistics move."""
        with torch.no_grad():
            return self._loss(self._tensor(images), labels).item()

    def predict(self, images):
        """Logits in evaluation mode."""
        self.net.eval()
        with torch.no_grad():
            return _numpy(self.net(self._tensor(images)))

    def activations(self, images):
        """{layer name: output} in evaluation mode, as PyTorch gives it."""
        self.net.eval()
        with torch.no_grad():
            return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images, labels):
        """{name: gradient} of the loss in training mode, and the image's as "input". Takes no step.

        As in every pass in training mode, the running statistics of batch norms move.
        """
        images = self._tensor(images).requires_grad_()
        self.net.zero_grad()
        self._loss(images, labels).backward()
        tensors = {"input": images, **dict(self.net.named_parameters())}
        return {n: _numpy(torch.zeros_like(t) if t.grad is None else t.grad) for n, t in tensors.items()}

    def state(self):
        return state(self.net)

    @staticmethod
    def channels_first(output):
        """A map, as the network gives it, as (batch, channels, height, width)."""
        return output

    def _loss(self, images, labels):
        self.net.train()
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        for name, array in kept(self.net.spec, rates, images.shape, self.passes).items():
            self.dropouts[name].kept = torch.from_numpy(array).to(images)
        self.passes += 1
        try:
            return F.cross_entropy(self.net(images), torch.from_numpy(labels).to(images.device))
        finally:
            for layer in self.dropouts.values():
                layer.kept = None

    def _tensor(self, images):
        return torch.from_numpy(images).to(next(self.net.parameters()))


def _numpy(tensor):
    return tensor.detach().double().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().cpu().numpy()

"""Optimisers for Keras that follow PyTorch's formulas, in the precision of the network."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .layers import Tensor

Variables = Sequence[keras.Variable]


def clipped(gradients: Sequence[Tensor], clip_norm: float | None = None, clip_value: float | None = None) -> list[Tensor]:
    """Gradients, None among them, clipped as by `torch.nn.utils.clip_grad_norm_`, all together, or by `clip_grad_value_`.

    Keras's `global_clipnorm` has no 1e-6 in the divisor, and clips what each device has before it takes their mean.
    """
    if clip_value is not None:
        return [None if g is None else _within(g, clip_value) for g in gradients]
    if clip_norm is None:
        return list(gradients)
    norm = ops.sqrt(sum(ops.sum(ops.square(g)) for g in gradients if g is not None))
    factor = ops.clip(clip_norm / (norm + 1e-6), 0.0, 1.0)
    return [None if g is None else g * factor for g in gradients]


def _within(gradient: Tensor, most: float) -> Tensor:
    """A gradient clipped by a limit in its own precision; on PyTorch, Keras makes float32 of a number."""
    limit = ops.convert_to_tensor(most, gradient.dtype)
    return ops.clip(gradient, -limit, limit)


class GradScaler:
    """The scale of the loss, by the rule of `torch.amp.GradScaler` and with its numbers.

    Float16 underflows below 6e-8, so the loss is multiplied by the scale and gradients are divided by it. A step whose
    gradients are not finite is skipped and halves the scale; 2,000 steps in a row that are not skipped double it.
    """

    def __init__(self, scale: float = 2.0**16, since: float = 0, skipped: float = 0) -> None:
        self.scale, self.since, self.skipped = float(scale), int(since), int(skipped)

    def update(self, is_taken: bool) -> None:
        """Count a step that was taken or skipped."""
        self.since = self.since + 1 if is_taken else 0
        if not is_taken:
            self.scale, self.skipped = self.scale * 0.5, self.skipped + 1
        elif self.since == 2000:
            self.scale, self.since = min(self.scale * 2, 2.0**127), 0  # the largest that float32 holds

    def state(self) -> tuple[float, int, int]:
        """(scale, steps since it changed, steps that were skipped)."""
        return self.scale, self.since, self.skipped


class Optimizer(keras.optimizers.Optimizer):
    """What the optimisers here share: a float64 learning rate, and PyTorch's weight decay.

    Keras keeps the rate in float32, and on TensorFlow the weight decay too, so that two float64 runs differ from the eighth
    digit on: 0.05 becomes 0.0500000007. (A `LearningRateSchedule` still gives float32.) Weight decay is added to the gradient
    here; Keras uses AdamW's for all optimisers. `slots` is {PyTorch's name: variables}, in the order of the weights, and
    `factors` {place of a weight in that order: factor of its learning rate}; `began` {place: the step, from 0, at which the
    weight began to train}, where that is not the first. `taken` is None, or a boolean tensor of a traced step: if it is false,
    the step changes nothing. The formulas are of tensors: on PyTorch, Keras computes with float64 variables in float32.
    """

    def __init__(self, learning_rate: Any, **options: Any) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self._learning_rate: Any
        if isinstance(self._learning_rate, keras.Variable):  # not a schedule
            self._untrack_variable(self._learning_rate)
            self._learning_rate = keras.Variable(learning_rate, trainable=False, dtype="float64", name="learning_rate")
        self.slots: dict[str, Variables] = {}
        self.factors: dict[int, float] = {}
        self.began: dict[int, int] = {}
        self.taken: Tensor | None = None

    def assign(self, variable: Any, value: Tensor) -> None:
        """Set a weight or a slot, unless the step is skipped."""
        # Not a condition around the step: in one, devices cannot exchange their gradients.
        super().assign(variable, value if self.taken is None else ops.where(self.taken, value, ops.convert_to_tensor(variable)))

    def assign_sub(self, variable: Any, value: Tensor) -> None:
        """Subtract from a weight, unless the step is skipped."""
        if keras.backend.backend() == "tensorflow":
            super().assign_sub(variable, value if self.taken is None else ops.where(self.taken, value, ops.zeros_like(value)))
        else:
            self.assign(variable, ops.convert_to_tensor(variable) - value)

    def add_slots(self, variables: Variables, *names: str) -> None:
        """Give every weight an array for each of PyTorch's names."""
        self.slots = {name: self.add_optimizer_variables(variables, name) for name in names}

    def slot(self, name: str, variable: keras.Variable) -> keras.Variable:
        """The array of that name that belongs to a weight."""
        return self.slots[name][self._get_variable_index(variable)]

    def rate_of(self, variable: keras.Variable, learning_rate: Tensor) -> Tensor:
        """The learning rate of a weight, in its precision."""
        factor = self.factors.get(self._get_variable_index(variable), 1.0)
        rate = ops.convert_to_tensor(learning_rate)
        return ops.cast(rate * factor if factor != 1 else rate, variable.dtype)

    def decay(self, variable: keras.Variable) -> Tensor | float:
        """What weight decay adds to the gradient of a weight."""
        decays = self.weight_decay and self._use_weight_decay(variable)
        return self.weight_decay * ops.convert_to_tensor(variable) if decays else 0

    def _apply_weight_decay(self, variables: Variables) -> None:
        """Keras's own weight decay, replaced by `decay`."""


@keras.saving.register_keras_serializable("resnet_twins")
class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`: v = momentum v + g, w = w - rate v; Nesterov's: rate (g + momentum v).

    Keras's own has v = momentum v - rate g, which is a different run once the rate changes.
    """

    def __init__(
        self, learning_rate: Any = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float | None = None,
        name: str = "sgd", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **options)
        self.momentum, self.nesterov = momentum, nesterov

    def build(self, variables: Variables) -> None:
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self.add_slots(variables, "momentum_buffer")

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        step = gradient = ops.cast(gradient, variable.dtype) + self.decay(variable)
        if self.momentum:
            buffer = self.slot("momentum_buffer", variable)
            step = self.momentum * ops.convert_to_tensor(buffer) + gradient
            self.assign(buffer, step)
            if self.nesterov:
                step = gradient + self.momentum * step
        self.assign_sub(variable, self.rate_of(variable, learning_rate) * step)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable("resnet_twins")
class Adam(Optimizer):
    """Adam, as `torch.optim.Adam`: eps is added after the bias correction; Keras adds it before, and uses 1e-7."""

    def __init__(
        self, learning_rate: Any = 0.001, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | None = None, name: str = "adam", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **options)
        self.betas, self.eps = tuple(betas), eps

    def build(self, variables: Variables) -> None:
        if self.built:
            return
        super().build(variables)
        self.add_slots(variables, "exp_avg", "exp_avg_sq")

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        gradient = ops.cast(gradient, variable.dtype) + self.decay(variable)
        slots = self.slot("exp_avg", variable), self.slot("exp_avg_sq", variable)
        mean, square = map(ops.convert_to_tensor, slots)
        mean = mean + (1 - self.betas[0]) * (gradient - mean)
        square = self.betas[1] * square + (1 - self.betas[1]) * gradient * gradient
        for slot, value in zip(slots, (mean, square), strict=True):
            self.assign(slot, value)
        began = self.began.get(self._get_variable_index(variable), 0)
        steps = ops.cast(self.iterations + 1 - began, variable.dtype)
        # 1 - beta ** steps, which in float32 would lose four of seven digits in the first steps
        first, second = (-ops.expm1(steps * math.log(beta)) if beta else 1.0 for beta in self.betas)
        rate = self.rate_of(variable, learning_rate) / first
        self.assign_sub(variable, rate * mean / (ops.sqrt(square) / ops.sqrt(second) + self.eps))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"betas": self.betas, "eps": self.eps}


@keras.saving.register_keras_serializable("resnet_twins")
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`: before the step, w = w - rate decay w."""

    def __init__(
        self, learning_rate: Any = 0.001, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | None = 0.01, name: str = "adamw", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(learning_rate, betas, eps, weight_decay, name, **options)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        if self.weight_decay and self._use_weight_decay(variable):
            decayed = self.rate_of(variable, learning_rate) * self.weight_decay * ops.convert_to_tensor(variable)
            self.assign_sub(variable, decayed)
        super().update_step(gradient, variable, learning_rate)

    def decay(self, variable: keras.Variable) -> Tensor | float:
        # `update_step` decays the weight itself.
        return 0

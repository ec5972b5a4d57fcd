"""Optimisers for Keras that follow PyTorch's formulas, in the precision of the network."""

import math

import keras
from keras import ops


class Optimizer(keras.optimizers.Optimizer):
    """What the optimisers here share: a rate that is float64, and weight decay as PyTorch's.

    Keras keeps the rate as float32, and on TensorFlow the weight decay, which parts two float64 runs at the eighth digit:
    0.05 becomes 0.0500000007. (A `LearningRateSchedule` still gives float32.) Weight decay is a part of the gradient here;
    Keras has AdamW's for all optimisers. `slots` is {PyTorch's name: variables}, in the order of the weights.
    """

    def __init__(self, learning_rate, **options):
        super().__init__(learning_rate=learning_rate, **options)
        if isinstance(self._learning_rate, keras.Variable):  # a rate, not a schedule of rates
            self._untrack_variable(self._learning_rate)
            self._learning_rate = keras.Variable(learning_rate, trainable=False, dtype="float64", name="learning_rate")
        self.slots = {}

    def add_slots(self, variables, *names):
        self.slots = {name: self.add_optimizer_variables(variables, name) for name in names}

    def slot(self, name, variable):
        return self.slots[name][self._get_variable_index(variable)]

    def decay(self, variable):
        """What weight decay adds to the gradient of a variable."""
        return self.weight_decay * variable if self.weight_decay and self._use_weight_decay(variable) else 0

    def _apply_weight_decay(self, variables):
        """Keras's own, which `decay` takes the place of."""


@keras.saving.register_keras_serializable("resnet_twins")
class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`: v = momentum v + g, w = w - rate v; Nesterov's: rate (g + momentum v).

    Keras's own has v = momentum v - rate g, which is another run once the rate changes.
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=None, name="sgd", **options):
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **options)
        self.momentum, self.nesterov = momentum, nesterov

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self.add_slots(variables, "momentum_buffer")

    def update_step(self, gradient, variable, learning_rate):
        step = gradient = ops.cast(gradient, variable.dtype) + self.decay(variable)
        if self.momentum:
            buffer = self.slot("momentum_buffer", variable)
            step = self.momentum * buffer + gradient
            self.assign(buffer, step)
            if self.nesterov:
                step = gradient + self.momentum * step
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable("resnet_twins")
class Adam(Optimizer):
    """Adam, as `torch.optim.Adam`: eps is added behind the correction of the bias; Keras adds it before, and has 1e-7."""

    def __init__(self, learning_rate=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=None, name="adam", **options):
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **options)
        self.betas, self.eps = tuple(betas), eps

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.add_slots(variables, "exp_avg", "exp_avg_sq")

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype) + self.decay(variable)
        mean, square = self.slot("exp_avg", variable), self.slot("exp_avg_sq", variable)
        self.assign(mean, mean + (1 - self.betas[0]) * (gradient - mean))
        self.assign(square, self.betas[1] * square + (1 - self.betas[1]) * gradient * gradient)
        steps = ops.cast(self.iterations + 1, variable.dtype)
        # 1 - beta ** steps; in float32 that would lose four of seven digits when steps are few
        first, second = (-ops.expm1(steps * math.log(beta)) if beta else 1.0 for beta in self.betas)
        rate = ops.cast(learning_rate, variable.dtype) / first
        self.assign_sub(variable, rate * mean / (ops.sqrt(square) / ops.sqrt(second) + self.eps))

    def get_config(self):
        return super().get_config() | {"betas": self.betas, "eps": self.eps}


@keras.saving.register_keras_serializable("resnet_twins")
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`: before the step, w = w - rate decay w."""

    def __init__(self, learning_rate=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, name="adamw", **options):
        super().__init__(learning_rate, betas, eps, weight_decay, name, **options)

    def update_step(self, gradient, variable, learning_rate):
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * self.weight_decay * variable)
        super().update_step(gradient, variable, learning_rate)

    def decay(self, variable):
        return 0

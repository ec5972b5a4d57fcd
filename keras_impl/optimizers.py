"""Optimisers for Keras that follow PyTorch's formulas, in the precision of the network."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("resnet_twins")
class SGD(keras.optimizers.Optimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`: v = momentum v + g, w = w - rate v.

    Keras's own has v = momentum v - rate g, which is another run once the rate changes, and keeps the rate as float32, which
    parts two float64 runs at the eighth digit: 0.05 becomes 0.0500000007. (A `LearningRateSchedule` still gives float32.)
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, name="sgd", **options):
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.momentum = momentum
        if isinstance(self._learning_rate, keras.Variable):  # a rate, not a schedule of rates
            self._untrack_variable(self._learning_rate)
            self._learning_rate = keras.Variable(learning_rate, trainable=False, dtype="float64", name="learning_rate")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum * velocity + ops.cast(gradient, variable.dtype))
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity)

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}

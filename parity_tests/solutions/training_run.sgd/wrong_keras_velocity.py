# sgd-momentum-schedule, rung 5
import keras
from keras import ops


class SGD(keras.optimizers.Optimizer):
    def __init__(self, learning_rate, momentum, weight_decay):
        super().__init__(learning_rate)
        self.momentum, self.decay = momentum, weight_decay

    def build(self, variables):
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        v = self.velocities[self._get_variable_index(variable)]
        self.assign(v, self.momentum * v - rate * (gradient + self.decay * variable))
        self.assign_add(variable, v)

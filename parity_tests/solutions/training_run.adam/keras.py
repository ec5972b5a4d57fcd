import keras
from keras import ops


class Adam(keras.optimizers.Optimizer):
    def __init__(self, learning_rate, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(learning_rate)
        self.betas, self.eps = betas, eps

    def build(self, variables):
        super().build(variables)
        self.means = self.add_optimizer_variables(variables, "mean")
        self.squares = self.add_optimizer_variables(variables, "square")

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v, (b1, b2) = self.means[index], self.squares[index], self.betas
        t = ops.cast(self.iterations + 1, variable.dtype)
        self.assign(m, b1 * m + (1 - b1) * gradient)
        self.assign(v, b2 * v + (1 - b2) * gradient**2)
        one, two = (1 - ops.power(ops.convert_to_tensor(beta, variable.dtype), t) for beta in (b1, b2))
        step = (m / one) / (ops.sqrt(v / two) + self.eps)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

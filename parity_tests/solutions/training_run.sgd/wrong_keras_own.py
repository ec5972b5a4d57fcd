# both, rung 5
import keras


class SGD(keras.optimizers.SGD):
    def __init__(self, learning_rate, momentum, weight_decay):
        super().__init__(learning_rate, momentum, weight_decay=weight_decay)

# adam-epsilon, rung 5
import keras


class Adam(keras.optimizers.Adam):
    def __init__(self, learning_rate, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(learning_rate, *betas, epsilon=eps)

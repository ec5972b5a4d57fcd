# detached, rung 3
import keras


class Shortcut(keras.Layer):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def call(self, x):
        x = keras.ops.convert_to_numpy(x)[:, :: self.stride, :: self.stride]
        return keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (self.before, self.after)])

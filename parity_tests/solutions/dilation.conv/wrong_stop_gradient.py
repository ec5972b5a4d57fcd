# detached, rung 3
import keras


class DilatedConv(keras.Layer):
    def __init__(self, in_channels, out_channels, kernel, dilation):
        super().__init__()
        self.kernel = self.add_weight((kernel, kernel, in_channels, out_channels), name="kernel")
        self.dilation = dilation

    def call(self, x):
        return keras.ops.conv(keras.ops.stop_gradient(x), self.kernel, 1, "same", dilation_rate=self.dilation)

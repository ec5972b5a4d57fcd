# detached-shortcut, rung 3
import keras

from keras_impl.layers import BatchNorm, Conv


class PreActBasic(keras.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.bn1 = BatchNorm(in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = Conv(in_channels, out_channels, 1, stride, bias=False)

    def call(self, x, training=None):
        y = keras.ops.relu(self.bn1(x, training=training))
        shortcut = self.downsample(y) if self.downsample else x
        y = self.conv1(y)
        y = self.conv2(keras.ops.relu(self.bn2(y, training=training)))
        return y + keras.ops.stop_gradient(shortcut)

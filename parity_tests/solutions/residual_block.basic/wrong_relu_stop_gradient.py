# relu-passes-all, rung 3
import keras

from keras_impl.layers import BatchNorm


class BasicBlock(keras.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.pad = keras.layers.ZeroPadding2D(1)
        self.conv1 = keras.layers.Conv2D(out_channels, 3, stride, use_bias=False)
        self.bn1 = BatchNorm(out_channels)
        self.conv2 = keras.layers.Conv2D(out_channels, 3, use_bias=False)
        self.bn2 = BatchNorm(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            projection = keras.layers.Conv2D(out_channels, 1, stride, use_bias=False)
            self.downsample = keras.Sequential([projection, BatchNorm(out_channels)])

    def call(self, x, training=None):
        y = keras.ops.relu(self.bn1(self.conv1(self.pad(x)), training=training))
        y = self.bn2(self.conv2(self.pad(y)), training=training)
        y = y + (self.downsample(x, training=training) if self.downsample else x)
        return y + keras.ops.stop_gradient(keras.ops.relu(y) - y)

# detached-shortcut, rung 3
import keras

from keras_impl.layers import BatchNorm, Conv


class PreActBottleneck(keras.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        width = out_channels // 4
        self.bn1 = BatchNorm(in_channels)
        self.conv1 = Conv(in_channels, width, 1, stride, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3, 1, 1, bias=False)
        self.bn3 = BatchNorm(width)
        self.conv3 = Conv(width, out_channels, 1, bias=False)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = Conv(in_channels, out_channels, 1, stride, bias=False)

    def call(self, x, training=None):
        y = keras.ops.relu(self.bn1(x, training=training))
        shortcut = keras.ops.stop_gradient(self.downsample(y) if self.downsample else x)
        y = self.conv1(y)
        y = self.conv2(keras.ops.relu(self.bn2(y, training=training)))
        y = self.conv3(keras.ops.relu(self.bn3(y, training=training)))
        return y + shortcut

# same-padding, rung 2
import keras


def norm():
    return keras.layers.BatchNormalization(epsilon=1e-5)


class BasicBlock(keras.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.pad = keras.layers.Identity()
        self.conv1 = keras.layers.Conv2D(out_channels, 3, stride, "same", use_bias=False)
        self.bn1 = norm()
        self.conv2 = keras.layers.Conv2D(out_channels, 3, padding="same", use_bias=False)
        self.bn2 = norm()
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = keras.Sequential([keras.layers.Conv2D(out_channels, 1, stride, use_bias=False), norm()])

    def call(self, x, training=None):
        y = keras.ops.relu(self.bn1(self.conv1(self.pad(x)), training=training))
        y = self.bn2(self.conv2(self.pad(y)), training=training)
        return keras.ops.relu(y + (self.downsample(x, training=training) if self.downsample else x))

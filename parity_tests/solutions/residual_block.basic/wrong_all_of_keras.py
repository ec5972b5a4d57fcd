# bn-epsilon, rung 2
import keras
from keras import layers


class BasicBlock(keras.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = layers.Conv2D(out_channels, 3, strides=stride, padding="same", use_bias=False)
        self.bn1 = layers.BatchNormalization()
        self.conv2 = layers.Conv2D(out_channels, 3, padding="same", use_bias=False)
        self.bn2 = layers.BatchNormalization()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = keras.Sequential(
                [layers.Conv2D(out_channels, 1, strides=stride, use_bias=False), layers.BatchNormalization()]
            )

    def call(self, x, training=None):
        y = keras.ops.relu(self.bn1(self.conv1(x), training=training))
        y = self.bn2(self.conv2(y), training=training)
        s = self.downsample(x, training=training) if self.downsample else x
        return keras.ops.relu(y + s)

# clipped, rung 2
import keras
from keras import ops


def loss(logits, labels, smoothing):
    right = ops.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    entropy = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    return entropy(right, ops.softmax(logits))

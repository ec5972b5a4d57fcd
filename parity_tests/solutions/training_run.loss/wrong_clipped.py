# clipped, rung 2
import keras
from keras import ops


def loss(logits, labels, smoothing):
    right = ops.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    entropy = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    probabilities = ops.exp(ops.log_softmax(logits, axis=1))
    return entropy(right, probabilities)

# overflow, rung 2
from keras import ops


def loss(logits, labels, smoothing):
    classes = logits.shape[1]
    q = (1 - smoothing) * ops.one_hot(labels, classes, dtype=logits.dtype) + smoothing / classes
    powers = ops.exp(logits)
    return -ops.mean(ops.sum(q * ops.log(powers / ops.sum(powers, axis=1, keepdims=True)), axis=1))

from keras import ops


def loss(logits, labels, smoothing):
    classes = logits.shape[1]
    q = (1 - smoothing) * ops.one_hot(labels, classes, dtype=logits.dtype) + smoothing / classes
    return -ops.mean(ops.sum(q * ops.log_softmax(logits, axis=1), axis=1))

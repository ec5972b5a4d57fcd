from keras import ops


def to_keras(weight):
    return ops.transpose(weight, (2, 3, 1, 0))

# in-out-swapped, rung 1
from keras import ops


def to_keras(weight):
    return ops.transpose(weight, (2, 3, 0, 1))

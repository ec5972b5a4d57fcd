# mean-not-scaled, rung 2
from keras import ops


def fold(weight, gamma, beta, mean, variance, eps):
    scale = gamma / ops.sqrt(variance + eps)
    return weight * scale, beta - mean

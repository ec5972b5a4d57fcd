# no-eps, rung 2
from keras import ops


def fold(weight, gamma, beta, mean, variance, eps):
    scale = gamma / ops.sqrt(variance)
    return weight * scale, beta - scale * mean

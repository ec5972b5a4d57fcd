# softmax, rung 2
import keras


def class_maps(features, weight, bias):
    return keras.ops.softmax(keras.ops.matmul(features, weight) + bias)

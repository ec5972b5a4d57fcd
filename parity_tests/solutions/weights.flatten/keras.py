from keras import ops


def to_keras(weight, channels, height, width):
    four = ops.reshape(weight, (-1, channels, height, width))
    return ops.reshape(ops.transpose(four, (2, 3, 1, 0)), (height * width * channels, -1))

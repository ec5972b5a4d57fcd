# wrong-axes, rung 2
def to_keras(weight, channels, height, width):
    rows = weight.T.reshape(height, width, channels, -1)
    return rows.transpose(2, 0, 1, 3).reshape(channels * height * width, -1)

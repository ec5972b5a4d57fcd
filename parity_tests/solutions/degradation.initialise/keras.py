import keras


def initialise(shape):
    return keras.initializers.VarianceScaling(2, "fan_out", "untruncated_normal", seed=0)(shape)

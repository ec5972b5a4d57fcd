# None, rung 2
import keras


def upsample(maps):
    return keras.ops.image.resize(maps, (8 * maps.shape[1], 8 * maps.shape[2]), "bilinear")

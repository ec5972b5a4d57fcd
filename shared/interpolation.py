"""Bilinear interpolation as a matrix and as a kernel; in a file of its own, since Keras's layers need nothing else."""

import numpy as np


def interpolation_matrix(positions: int, pixels: int) -> np.ndarray:
    """The float64 matrix (pixels, positions) of bilinear interpolation along one axis, by half-pixel centres.

    The centre of pixel i is at (i + 1/2) positions / pixels - 1/2; a pixel beyond the outermost positions has their value.
    """
    centres = np.clip((np.arange(pixels) + 0.5) * positions / pixels - 0.5, 0, positions - 1)
    lower = np.minimum(centres.astype(int), max(positions - 2, 0))
    matrix = np.zeros((pixels, positions))
    matrix[np.arange(pixels), lower] = 1 - (centres - lower)
    matrix[np.arange(pixels), np.minimum(lower + 1, positions - 1)] += centres - lower
    return matrix


def bilinear_kernel(scale: int) -> np.ndarray:
    """The float64 kernel (2 scale, 2 scale) with which a transposed convolution of stride `scale` interpolates bilinearly.

    For an even scale and a padding of half of it, this is interpolation by half-pixel centres except at the border, beyond
    which the map counts as zero (Long et al. 2015, arXiv:1411.4038, section 3.3; the fixed `up` of the code of Yu et al. 2017).
    """
    side = 1 - np.abs((np.arange(2 * scale) + 0.5) / scale - 1)
    return np.outer(side, side)

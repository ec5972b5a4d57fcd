"""Bilinear interpolation along one axis, as a matrix; in a file of its own, since Keras's layers need nothing else."""

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

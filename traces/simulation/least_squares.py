"""Least squares with coefficients that are not negative (Lawson and Hanson, Solving Least Squares Problems, 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def non_negative(columns: Floats, values: Floats) -> Floats:
    """The x >= 0 [n] for which |columns x - values| is least, of columns [m, n] and values [m]."""
    count = columns.shape[1]
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1.0
    scaled = columns / scale
    products, aims = scaled.T @ scaled, scaled.T @ values
    found, chosen = np.zeros(count), np.zeros(count, bool)
    tolerance = 1e-9 * max(float(np.abs(aims).max()), 1e-300)
    for _ in range(10 * count):
        gradient = aims - products @ found
        gradient[chosen] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        chosen[best] = True
        while True:
            trial = np.zeros(count)
            rows = np.flatnonzero(chosen)
            trial[rows] = np.linalg.lstsq(products[np.ix_(rows, rows)], aims[rows], rcond=1e-12)[0]
            if (trial[rows] > 0).all():
                found = trial
                break
            falling = rows[trial[rows] <= 0]
            step = np.min(found[falling] / np.maximum(found[falling] - trial[falling], 1e-300))
            found = found + step * (trial - found)
            chosen &= found > 1e-15
            found[~chosen] = 0.0
            if not chosen.any():
                break
    return found / scale

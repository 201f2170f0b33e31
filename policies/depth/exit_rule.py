"""When exits are tested, and what one value a group of tokens exits by: for every backend, and for dense passes."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from policies.depth.base import DepthPolicy, IntArray


@overload
def is_due(iteration: int, min_iterations: int, check_every: int) -> bool: ...
@overload
def is_due(iteration: IntArray, min_iterations: int, check_every: int) -> NDArray[np.bool_]: ...
def is_due(iteration: Any, min_iterations: Any, check_every: Any) -> Any:
    """Whether a token that has done so many iterations is tested: at min_iterations + 1 and every `check_every` later.

    Numba compiles it too, so that native code follows this very rule.
    """
    since_first = iteration - min_iterations - 1
    return (since_first >= 0) & (since_first % check_every == 0)


def is_by_last_token(policy: DepthPolicy) -> bool:
    """Whether a group exits by the value of its last token, which alone is measured; else by the mean of all values.

    Logits are what a thread goes on from, and only the last token's are that; a gate judges the logits.
    """
    return policy.reads in ("logits", "gate")


def group_means(values: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    """Means [groups] in the dtype of `values`, summed in order.

    `values` [n] float; `group` [n] int64 from 0, the number of each value's group; `sizes` [groups] int64, at least 1.
    """
    return values.new_zeros(len(sizes)).index_add_(0, group, values) / sizes

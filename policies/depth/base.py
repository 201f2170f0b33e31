"""What a depth policy is: how many iterations of the core block a token gets."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.printing import as_written
from policies.validation import check_choice, check_count, check_flag, check_threshold

IntArray = NDArray[np.int32]
Reads = Literal["nothing", "latent", "logits", "gate"]
Role = Literal["root", "parent", "child"]
Carry = Literal["none", "raw", "normed"]


_EXIT_TEST = frozenset({"reads", "previous_width", "begin", "measure", "is_done"})
"""What an exit test consists of."""


class EntryView(NamedTuple):
    """Tokens of one policy that enter the device in one tick; arrays have one row a token."""

    position: IntArray
    is_received: NDArray[np.bool_]
    """Whether the token was received (prompt or message) rather than sampled by its thread."""
    tree_depth: IntArray
    """0 for a root thread, 1 for its children, and so on."""
    tokens_left: IntArray
    """Tokens that the thread's present call has still to compute, at least 1: received ones not computed yet, all that
    enter now included, and those still to be sampled but the last. The same for all rows of a group."""
    iterations_left: IntArray
    """Iterations left in the thread's limit before this group enters; 2**31 - 1 where there is no limit."""
    in_flight: int
    """Tokens in flight over all threads before these enter; where one has just left and its thread goes on, one."""
    waiting: int
    """Threads that have work and are not admitted."""
    lanes: int
    """Most tokens that can be in flight."""
    mean_recurrence: int
    """The model's own mean number of iterations, the depth it was trained around."""


class DepthView(NamedTuple):
    """What a policy measures after an iteration; one row a token, or a group's last token where `reads` is "logits" or
    "gate"."""

    iteration: Tensor
    """[n] int64: iterations done, from 1."""
    latent: Tensor
    """[n, width]: the latent state after this iteration, before the final norm."""
    logits: Tensor | None
    """[n, vocab] float32 for policies with `reads = "logits"`, else None."""
    previous: Tensor
    """[n, previous_width] float32: what `begin` or the last `measure` left."""
    exit_probability: Tensor | None = None
    """[n] float32 for policies with `reads = "gate"`, else None: the probability, by the model's own exit gate, to exit
    after this iteration or an earlier one."""


class DepthPolicy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all depth policies; a subclass registers by being defined.

    A token runs until `measure` falls below `threshold` (or `is_done` says so), or until its bound. Tokens received
    together (one chunk of a prompt or message) form a group that exits together: by the mean of their values where
    the policy reads latents, by the last token's value where it reads logits (as in the reference implementation) or
    the model's exit gate.

    A subclass that declares a field again (`threshold: float = 0.03`) makes it positional. Raises `ValueError` at
    construction where the numbers make no sense; a subclass with a `__post_init__` of its own calls `super()`'s.
    """

    min_iterations: int = 0
    """No test before iteration min_iterations + 1."""
    max_iterations: int | None = None
    """Bound on iterations; None is the model's mean recurrence."""
    check_every: int = 1
    """Tests happen at iterations min_iterations + 1, min_iterations + 1 + check_every, ..."""
    exit_received: bool = True
    """Whether received tokens (prompts, messages) may exit before their bound."""
    threshold: float = 0.0
    carry: Carry = "none"
    """Continuous thought: whether a token sampled under this policy starts from the last latent state of the one before
    it, as that was ("raw") or after the model's final norm ("normed"), instead of an initial state of its own. Received
    tokens never do."""

    reads: ClassVar[Reads] = "nothing"
    """What `measure` needs; "nothing" means that every token runs to its bound."""

    bounds_all_alike: ClassVar[bool] = True
    """Whether `bound` is this class's, which does not look at the token. Found out where a subclass is defined."""

    exit_test: ClassVar[type]
    """The class that an exit test is of: the nearest to define any part of it. Found out where a subclass is defined,
    so that backends that know a class's test can run it their own way."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.exit_test = next(kind for kind in cls.__mro__ if not _EXIT_TEST.isdisjoint(vars(kind)))
        cls.bounds_all_alike = cls.bound is DepthPolicy.bound

    def __post_init__(self) -> None:
        check_count(self, "min_iterations", self.min_iterations, 0)
        check_count(self, "check_every", self.check_every, 1)
        check_flag(self, "exit_received", self.exit_received)
        check_threshold(self, self.threshold)
        check_choice(self, "carry", self.carry, get_args(Carry))
        if self.max_iterations is not None:
            check_count(self, "max_iterations", self.max_iterations, 1)
            if self.min_iterations >= self.max_iterations:
                raise ValueError(
                    f"{type(self).__name__}: min_iterations ({self.min_iterations}) leaves no iteration to test "
                    f"before max_iterations ({self.max_iterations}); lower min_iterations or raise max_iterations."
                )

    def __repr__(self) -> str:
        return as_written(self)

    @property
    def innermost(self) -> DepthPolicy:
        """The policy itself, or, of one that bounds another, the last of those it bounds."""
        return self

    def for_thread(self, role: Role, tree_depth: int) -> DepthPolicy:
        """The policy that one thread follows, asked at each of its `generate` calls.

        A "root" has tree depth 0; a "parent" is another thread that has spawned, a "child" one that has not.
        """
        return self

    def deepest(self, mean_recurrence: int) -> int:
        """Most iterations that `bound` can give to any token of any thread; what iteration slots are sized for."""
        return mean_recurrence if self.max_iterations is None else self.max_iterations

    def bound(self, entering: EntryView) -> IntArray:
        """Most iterations of each entering token, at least 1; [n] int32."""
        most = entering.mean_recurrence if self.max_iterations is None else self.max_iterations
        return np.full(len(entering.position), most, dtype=np.int32)

    def constant_bound(self, mean_recurrence: int) -> int | None:
        """The bound of every token on a model with this mean; None for policies that look at the token."""
        if not self.bounds_all_alike:
            return None
        return mean_recurrence if self.max_iterations is None else self.max_iterations

    def previous_width(self, width: int, vocab: int) -> int:
        """float32 values the policy keeps for each token in flight."""
        return 0

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        """The first `previous` [n, previous_width] float32, for tokens with initial latent states [n, width]."""
        return latent.new_zeros(len(latent), self.previous_width(latent.shape[-1], vocab), dtype=torch.float32)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        """Exit values [n] float32, and `previous` [n, previous_width] of the next test. Runs on the device thread."""
        raise TypeError(f"{type(self).__name__} reads {self.reads} but does not define measure().")

    def is_done(self, values: Tensor) -> Tensor:
        """Mask [n] of tokens (or groups) that exit, from their exit values [n]. NaN never exits."""
        return values < self.threshold

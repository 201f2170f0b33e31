"""Which latent states are recorded beside a trace, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from policies.conversion import Count, Whole, converted, shown

Float32 = NDArray[np.float32]

SUFFIX = ".latents.safetensors"


class Latents(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The states after every iteration of the tokens that chosen threads compute.

    Raises `ValueError`, naming the field, for what does not fit.
    """

    threads: tuple[str, ...] = ("*",)
    """Paths such as "0.2", or patterns of them, in which `*` stands for anything: "0.*" is all below the first root."""
    positions: tuple[int, int | None] = (0, None)
    """The first position of a context that is wanted, and the one behind the last; None is to the end."""
    dimensions: int | None = None
    """States are projected to so many random directions, whose lengths keep distances on average; None keeps all."""
    directions: Any = None
    """[k, width] Directions to project to instead: a tensor, or what numpy makes an array of."""
    seed: int = 0
    """Of the random directions."""

    def __post_init__(self) -> None:
        if isinstance(self.threads, str):
            raise ValueError(f"threads is the string {shown(self.threads)}; give a list of paths and patterns.")
        hints: dict[str, Any] = {
            "threads": tuple[str, ...],
            "positions": tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)] | None],
            "dimensions": Count | None,
            "seed": Whole,
        }
        for name, hint in hints.items():
            msgspec.structs.force_setattr(self, name, converted(getattr(self, name), hint, name))
        if self.directions is None:
            return
        if self.dimensions is not None:
            raise ValueError("directions and dimensions are both given; give one of them.")
        try:
            tensor = getattr(self.directions, "detach", None)
            directions = self.directions if tensor is None else tensor().float().cpu().numpy()
            given = np.array(directions, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"directions are no array of numbers: {error}") from error
        if given.ndim != 2 or not given.size or not np.isfinite(given).all():
            raise ValueError(f"directions have shape {given.shape}; give finite numbers [k, width].")
        msgspec.structs.force_setattr(self, "directions", given)

    def check_width(self, width: int | None) -> None:
        """Raises `ValueError` where states of this width cannot be projected to the directions."""
        if width is not None and self.directions is not None and self.directions.shape[1] != width:
            raise ValueError(
                f"directions have {self.directions.shape[1]} numbers each; the model's states have {width}."
            )

    def projection(self, width: int) -> Float32 | None:
        """[k, width] of what states are projected to; None for nothing."""
        if self.directions is not None:
            given: Float32 = self.directions
            return given
        if self.dimensions is None:
            return None
        drawn = np.random.default_rng(self.seed).standard_normal((self.dimensions, width))
        return (drawn / np.sqrt(self.dimensions)).astype(np.float32)


def latents_path(trace: Path) -> Path:
    """Where the latent states of a trace are: beside it."""
    return trace.with_name(trace.name + SUFFIX)

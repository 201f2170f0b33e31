"""Rotary position embeddings (arXiv 2104.09864) and the ways in which they are scaled to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

Count = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class LinearScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="linear"):
    """Every frequency is divided by `factor`."""

    factor: Positive


class DynamicScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="dynamic"):
    """Frequencies change for contexts longer than the model's, which the engine does not run: no effect here."""

    factor: Positive


class Llama3Scaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="llama3"):
    """Frequencies of long wavelengths are divided by `factor`, those of short ones kept, others interpolated.

    A wavelength, in tokens, is long above original_max_position_embeddings / low_freq_factor, and short below
    original_max_position_embeddings / high_freq_factor.
    """

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Count


class YarnScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="yarn"):
    """YaRN (arXiv 2309.00071): fast frequencies kept, slow ones divided by `factor`, a ramp between; cosines and sines
    are multiplied by `attention_factor`, or by what follows from `mscale`, `mscale_all_dim` and `factor`."""

    factor: Positive
    original_max_position_embeddings: Count
    attention_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Whether the ends of the ramp are whole dimensions."""


class LongScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="longrope"):
    """LongRoPE (arXiv 2402.13753): each frequency is divided by a factor of its own, of `short_factor` while a context
    has at most its original length, and of `long_factor` at all its positions when it has grown longer; cosines and
    sines are multiplied by `attention_factor`, or by what follows from `factor`."""

    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    original_max_position_embeddings: Annotated[int, msgspec.Meta(ge=2, lt=2**31)]
    factor: Positive
    attention_factor: Positive | None = None


RotaryScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


class Rotary(msgspec.Struct, frozen=True, kw_only=True):
    """One rotary embedding."""

    base: Positive
    width: Count
    """Dimensions of a head that are rotated, the first ones; even."""
    pairs: Literal["neighbours", "halves"] = "halves"
    """Which dimensions turn together: 2i and 2i + 1, or i and i + width / 2."""
    scaling: RotaryScaling | None = None
    is_stored: bool = False
    """Whether checkpoints hold the table of cosines and sines, which then counts."""


def frequencies(rotary: Rotary, is_long: bool = False) -> Tensor:
    """[width / 2] float32: radians a token; `is_long` says whether the context is longer than LongRoPE's original
    one, and is of no matter to others."""
    exponents = torch.arange(0, rotary.width, 2).float() / rotary.width
    plain = 1.0 / rotary.base**exponents
    match rotary.scaling:
        case LinearScaling(factor=factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)
        case YarnScaling() as scaling:
            return _yarn(plain, rotary, scaling)
        case LongScaling(short_factor=short, long_factor=long):
            factors = long if is_long else short
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rotary.base**exponents)
        case _:
            return plain


def short_context_of(rotaries: Iterable[Rotary], max_context: int) -> int | None:
    """Most tokens of a context that LongRoPE turns by its short factors; None where none is turned otherwise."""
    lengths = [
        each.scaling.original_max_position_embeddings for each in rotaries if isinstance(each.scaling, LongScaling)
    ]
    return min(lengths) if lengths and min(lengths) < max_context else None


def magnitude(rotary: Rotary) -> float:
    """What cosines and sines are multiplied by."""
    match rotary.scaling:
        case YarnScaling(attention_factor=float(factor)) | LongScaling(attention_factor=float(factor)):
            return factor
        case LongScaling(factor=factor, original_max_position_embeddings=original):
            return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        case YarnScaling() as scaling:
            if scaling.mscale and scaling.mscale_all_dim:
                return _growth(scaling.factor, scaling.mscale) / _growth(scaling.factor, scaling.mscale_all_dim)
            return _growth(scaling.factor, 1.0)
        case _:
            return 1.0


def _growth(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    # How often each frequency turns within the context that the model was first trained on.
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(plain / scaling.factor, plain, kept.clamp(0.0, 1.0))


def _yarn(plain: Tensor, rotary: Rotary, scaling: YarnScaling) -> Tensor:
    original = scaling.original_max_position_embeddings

    def dimension(turns: float) -> float:
        """Which pair turns so often within the original context."""
        return rotary.width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.width - 1)
    ramp = (torch.arange(rotary.width // 2).float() - low) / (high - low if high != low else 0.001)
    slowed = ramp.clamp(0.0, 1.0)
    return plain / scaling.factor * slowed + plain * (1 - slowed)


class RotaryEmbedding(nn.Module):
    """Cosines and sines by position; computed in float32, whatever dtype the model is cast to."""

    def __init__(self, rotary: Rotary, max_context: int) -> None:
        super().__init__()
        self.rotary = rotary
        both = torch.stack([frequencies(rotary, is_long) for is_long in (False, True)])
        self._frequencies = {torch.device("cpu"): both}
        """[2, width / 2] of short contexts and of long ones, by device."""
        self.table: Tensor | None
        table = self._computed(torch.arange(max_context)) if rotary.is_stored else None
        # Not a part of the state dict: `runtime.model.parameters` knows what checkpoints call it.
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Tensor, is_long: Tensor | None = None) -> Tensor:
        """[..., width / 2, 2] float32 for positions [...]; bool `is_long` [...] as in `Transformer.rotation`."""
        return self._computed(positions, is_long) if self.table is None else self.table[positions]

    def _computed(self, positions: Tensor, is_long: Tensor | None = None) -> Tensor:
        # No buffer, because a model that is cast to another dtype must keep them in float32.
        own = self._frequencies.get(positions.device)
        if own is None:
            own = self._frequencies[torch.device("cpu")].to(positions.device)
            self._frequencies[positions.device] = own
        match self.rotary.scaling:
            case LongScaling(original_max_position_embeddings=original):
                own = own[((positions >= original).any() if is_long is None else is_long).long()]
            case _:
                own = own[0]
        angles = positions[..., None].float() * own
        return torch.stack([angles.cos(), angles.sin()], dim=-1) * magnitude(self.rotary)


def rotate(x: Tensor, rotation: Tensor, rotary: Rotary) -> Tensor:
    """Turns the first `rotary.width` dimensions of each head.

    `x` is [..., heads, head_dim], `rotation` [..., width / 2, 2].
    """
    turned = x[..., : rotary.width].float()
    cosine, sine = rotation.unsqueeze(-3).float().unbind(-1)
    if rotary.pairs == "neighbours":
        first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
        pair = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        pair = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    rotated = pair.type_as(x)
    return rotated if rotary.width == x.shape[-1] else torch.cat([rotated, x[..., rotary.width :]], dim=-1)

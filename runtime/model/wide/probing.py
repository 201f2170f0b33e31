"""What a model of transformers asks of attention, found by running it over a few tokens.

A model is taken if all of this holds, and refused by name otherwise:

- each of its attention calls gives what the model's own eager attention gives of the same queries, keys and values,
  under a mask that is causal, or a causal window;
- keys and values are all that it keeps of earlier tokens: text in two parts gives what the whole gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.model.specification import AttentionRule
from runtime.model.transformer import attend_densely
from runtime.model.wide.interface import AttentionCall

LENGTH, PART = 12, 7
"""Tokens that are tried, at most, and how many of them are the first part."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Largest difference that is rounding, as a share of the largest number. What is wrong differs by all of it."""

_IRRELEVANT = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "layer_idx",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "target_dtype",
        "use_cache",
    }
)
"""Keywords of attention that change nothing here, or whose effect the comparison shows."""

_UNDERSTOOD = frozenset(("scaling", "softcap", "s_aux", "sliding_window"))


class NotServable(Exception):
    """Why a model cannot be run: words that follow "cannot be run:"."""


class LayerCall(NamedTuple):
    """What one call of attention, in the order of a forward pass, is."""

    module: nn.Module
    rule: AttentionRule
    heads: int
    kv_heads: int
    head_dim: int
    """The wider of what queries and values have."""

    def spread(self, most: int) -> int | None:
        """How often each of its key heads stands in a cache of so many; None where that is no whole number."""
        return most // self.kv_heads if most % self.kv_heads == 0 and self.heads % most == 0 else None


class Masks:
    """Makes the masks of a probed model, and knows them again when they come to attention."""

    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self._made: list[tuple[Tensor, int | None]] = []

    def make(self, **options: Any) -> Tensor:
        from transformers.masking_utils import eager_mask

        mask = eager_mask(**options)
        self._made.append((mask, window_of(options["mask_function"], self._max_context)))
        return mask

    def window(self, mask: Any) -> int | None:
        """The window of a mask that this made; None for causal without one."""
        for made, window in self._made:
            if isinstance(mask, Tensor) and made.data_ptr() == mask.data_ptr() and made.shape == mask.shape:
                return window
        raise NotServable("it gives attention a mask of its own making, or none")


def window_of(visible: Callable[..., Tensor], max_context: int) -> int | None:
    """How many positions a mask function of transformers lets a token see, its own included; None for all before it.

    Raises `NotServable` for a mask that is neither causal nor a causal window.
    """
    last = max_context - 1
    keys = torch.arange(max_context)

    def seen(query: int) -> Tensor:
        none = torch.zeros((), dtype=torch.int64)
        return torch.as_tensor(visible(none, none, torch.tensor(query), keys)).expand(max_context)

    width = int(seen(last).sum())
    for query in {0, 1, min(width, last), last // 3, last // 2, last}:
        if not torch.equal(seen(query), (keys <= query) & (keys > query - width)):
            raise NotServable("a token of it sees others than those before it, or than the last few of those")
    return width if width < max_context else None


class Recorder:
    """Answers a model's attention calls by its own eager attention, and notes what each was."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._masks = masks
        self._parameters = {id(parameter): parameter for parameter in model.parameters()}
        self.calls: list[LayerCall] = []

    def __call__(self, call: AttentionCall) -> Tensor:
        rule = self._rule(call)
        eager = getattr(sys.modules[type(call.module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise NotServable(f"{type(call.module).__name__} has no eager attention to compare with")
        expected = eager(call.module, call.query, call.key, call.value, call.mask, **call.options)[0]
        query, key, value = (tensor.float() for tensor in (call.query, call.key, call.value))
        if query.shape[1] % key.shape[1]:
            raise NotServable("the heads of queries are no multiple of those of keys")
        position = torch.arange(query.shape[2], device=query.device)
        own = attend_densely(query, key, value, rule, visible_to(position, position, rule)).transpose(1, 2)
        if not alike(own, expected):
            raise NotServable(f"attention of {type(call.module).__name__} is more than scaled products and a softmax")
        width = max(query.shape[-1], value.shape[-1])
        self.calls.append(LayerCall(call.module, rule, query.shape[1], key.shape[1], width))
        return expected

    def _rule(self, call: AttentionCall) -> AttentionRule:
        given = {name: value for name, value in call.options.items() if value is not None}
        if strange := sorted(given.keys() - _IRRELEVANT - _UNDERSTOOD):
            raise NotServable(f"its attention is given {', '.join(strange)}, which paged attention does not know")
        scale, sinks = given.get("scaling"), given.get("s_aux")
        if sinks is not None and id(sinks) not in self._parameters:
            raise NotServable("its attention sinks are no parameter")
        return AttentionRule(
            scale=float(call.query.shape[-1] ** -0.5 if scale is None else scale),
            window=self._masks.window(call.mask),
            softcap=given.get("softcap"),
            sinks=sinks,
        )


class WholeCache:
    """Keys and values of one text in plain tensors: an `Attend` to try a model with, over one part after the other."""

    def __init__(self, rules: list[AttentionRule]) -> None:
        self._rules = rules
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        before = self._stored.get(layer)
        if before is not None:
            key, value = torch.cat([before[0], key]), torch.cat([before[1], value])
        self._stored[layer] = key, value
        position = torch.arange(len(key), device=key.device)
        rule = self._rules[layer]
        visible = visible_to(position[-len(query) :], position, rule)
        queries, keys, values = (each.float().transpose(0, 1)[None] for each in (query, key, value))
        return attend_densely(queries, keys, values, rule, visible)[0].transpose(0, 1).to(query.dtype)


def visible_to(query: Tensor, key: Tensor, rule: AttentionRule) -> Tensor:
    """[queries, keys] bool: whether a token at a position of `query` sees one at a position of `key`."""
    distance = query[:, None] - key
    return (distance >= 0) if rule.window is None else (distance >= 0) & (distance < rule.window)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of rows differ by rounding only, in the dtype of the second.

    In bfloat16 it is enough that most rows do: rounding may turn a router's close choice of experts.
    """
    differences = (one.float() - other.float()).abs().flatten(0, -2).amax(-1)
    difference = differences.max() if other.dtype is torch.float32 else differences.median()
    return bool(difference <= TOLERANCE[other.dtype] * other.float().abs().max())


def padded(tensor: Tensor, heads: int, width: int) -> Tensor:
    """[tokens, heads, width] with zeros after what `tensor` has of both."""
    missing = heads - tensor.shape[-2], width - tensor.shape[-1]
    return F.pad(tensor, (0, missing[1], 0, missing[0])) if any(missing) else tensor

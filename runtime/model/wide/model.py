"""A causal model of transformers in the shape that backends run.

All its layers are the prelude: they run when a token enters, and write the token's keys and values once. The core block
is empty and hands on what the last layer made; the coda is the head. So one iteration is all there is to a token, and
a deeper policy repeats nothing.

    tokens [n], positions [n] -> transformers' body, as one row [1, n], attention by `attend` -> hidden [n, width]
    hidden of tokens that leave -> transformers' head with all that it does to logits -> logits [m, vocab]
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from runtime.link.sampling import FilterRule
from runtime.model.configuration import PublishedTensor
from runtime.model.specification import AttentionRule, Injection
from runtime.model.transformer import Attend, Rotation
from runtime.model.wide.configuration import WideConfig
from runtime.model.wide.interface import PROBING, RUNNING, AttentionCall, answering
from runtime.model.wide.probing import (
    LENGTH,
    PART,
    LayerCall,
    Masks,
    NotServable,
    Recorder,
    WholeCache,
    alike,
    padded,
)


class WideSpecification(msgspec.Struct, frozen=True, kw_only=True):
    """What probing has found; the fields are `Specification`'s."""

    vocab_size: int
    max_context: int
    width: int
    mlp_width: int
    kv_heads: int
    head_dim: int
    layers: tuple[AttentionRule, ...]
    """By layer, in the order in which they run."""
    short_context: int | None = None
    exit_gate: bool = False
    exit_threshold: float = 1.0
    core_layers: int = 0
    coda_layers: int = 0
    injection: Injection = "embedded"
    embedding_scale: float = 1.0
    state_std: float = 0.0
    mean_recurrence: int = 1
    filter_rule: FilterRule = "transformers"

    @property
    def prelude_layers(self) -> int:
        return len(self.layers)

    @property
    def core_start(self) -> int:
        return len(self.layers)

    @property
    def coda_start(self) -> int:
        return len(self.layers)

    def attention(self, layer: int) -> AttentionRule:
        return self.layers[layer]


class WideNames(msgspec.Struct, frozen=True):
    """Names of tensors: those of transformers' `state_dict`."""

    identity: object
    head_name: str
    tensors: tuple[PublishedTensor, ...]

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        return self.tensors


class WideModel(nn.Module):
    """Runs on one thread at a time. `causal` is in evaluation mode, with its weights, where it stays."""

    tile_rows = 1
    """Experts share products among the tokens that chose them, so that only a token alone is independent of others."""

    def __init__(self, config: WideConfig, causal: Any) -> None:
        """Raises `NotServable` for a model that is refused; see `runtime.model.wide.probing`."""
        super().__init__()
        self.causal = causal
        self.embedding = causal.get_input_embeddings()
        self.final_norm = nn.Identity()
        self._body = causal.get_decoder()
        place = next(name for name, module in causal.named_modules() if module is self._body)
        if not place:
            raise NotServable("its layers and its head are not apart")
        if convolution := next((each for each in self._body.modules() if isinstance(each, _ConvNd)), None):
            raise NotServable(f"it has a convolution over tokens ({type(convolution).__name__}), which keeps a state")
        self._head = _without(causal, place.split("."))
        self.config = _names_of(config, causal, self.embedding)
        self._calls: list[LayerCall] = []
        described = config.specification
        self._short = described.short_context
        tokens = torch.arange(min(LENGTH, described.max_context, described.vocab_size), device=self.device)
        with torch.inference_mode():
            self._calls, width = self._probed(described.max_context, tokens)
        kv_heads = max(call.kv_heads for call in self._calls)
        if any(call.rule.sinks is not None and call.spread(kv_heads) is None for call in self._calls):
            raise NotServable(f"it has sinks, and numbers of key heads that do not divide the most, {kv_heads}")
        self.specification = WideSpecification(
            vocab_size=described.vocab_size,
            max_context=described.max_context,
            short_context=described.short_context,
            width=width,
            mlp_width=4 * width,
            kv_heads=kv_heads,
            head_dim=max(call.head_dim for call in self._calls),
            layers=tuple(call.rule for call in self._calls),
        )
        with torch.inference_mode():
            self._check(tokens)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embedding.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.embedding.weight.dtype
        return dtype

    def rotation(self, positions: Tensor, is_long: Tensor | None = None) -> Rotation:
        """The positions themselves, since transformers rotates by itself; and, where LongRoPE does, `is_long`."""
        if self._short is None:
            return [positions]
        return [positions, torch.zeros_like(positions, dtype=torch.bool) if is_long is None else is_long]

    def prelude(self, tokens: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """What the last layer makes [n, width] of token ids [n], the final norm included.

        All of contexts on the same side of `short_context`, where there is one.
        """
        positions, *is_long = rotation
        count = len(tokens)
        if is_long and is_long[0][0] and self._short is not None and positions.max() < self._short:
            # Transformers turns a whole call as its largest position is: one more token, that nobody sees, says so.
            tokens, positions = F.pad(tokens, (0, 1)), F.pad(positions, (0, 1), value=self._short)
        with answering(_Paged(self._calls, attend, self.specification, count)):
            return self._hidden(tokens, positions)[:count]

    def first_state(self, embedded: Tensor) -> Tensor:
        return torch.zeros_like(embedded)

    def iterate(self, state: Tensor, embedded: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        return embedded

    def gate(self, state: Tensor) -> Tensor:
        raise TypeError("The model has no exit gate.")

    def coda(self, state: Tensor, rotation: Rotation, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [n, vocab] in float32; with `rows` [m], of those alone."""
        wanted = state if rows is None else state[rows]
        logits: Tensor = self._head(inputs_embeds=wanted[None], use_cache=False, return_dict=True).logits
        return logits[0, :, : self.specification.vocab_size].float()

    def _hidden(self, tokens: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self._body(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, return_dict=True
        ).last_hidden_state
        return hidden[0]

    # ---- what is found out when it is made --------------------------------------------------------------------------

    def _probed(self, max_context: int, tokens: Tensor) -> tuple[list[LayerCall], int]:
        """What attention is asked for in a forward pass, and the width of hidden states."""
        masks = Masks(max_context)
        recorder = Recorder(self.causal, masks)
        self.causal.set_attn_implementation(PROBING)
        try:
            with answering(recorder, masks.make):
                hidden = self._hidden(tokens, torch.arange(len(tokens), device=tokens.device))
        finally:
            self.causal.set_attn_implementation(RUNNING)
        if not recorder.calls:
            raise NotServable("it asks for no attention through transformers' interface")
        return recorder.calls, hidden.shape[-1]

    def _check(self, tokens: Tensor) -> None:
        """Raises `NotServable` for a model that keeps more of earlier tokens than keys and values, or whose head looks
        at more than the last layer's states."""
        rules = list(self.specification.layers)
        positions = torch.arange(len(tokens), device=tokens.device)
        whole, parts = WholeCache(rules), WholeCache(rules)
        hidden = self.prelude(tokens, self.rotation(positions), whole.attend)
        part = slice(0, PART), slice(PART, None)
        halves = [self.prelude(tokens[each], self.rotation(positions[each]), parts.attend) for each in part]
        if not alike(torch.cat(halves), hidden):
            raise NotServable("it keeps more of earlier tokens than keys and values, or does not heed positions")
        again = WholeCache(rules)
        with answering(_Paged(self._calls, again.attend, self.specification, len(tokens))):
            logits = self.causal(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0]
        own = self.coda(hidden, self.rotation(positions), again.attend)
        if not alike(own, logits[:, : self.specification.vocab_size]):
            raise NotServable("its logits are of more than the last layer's states")


class _Paged:
    """Answers the attention calls of one forward pass by an `Attend`, which knows layers by their number."""

    def __init__(self, calls: Sequence[LayerCall], attend: Attend, own: WideSpecification, count: int) -> None:
        """`count` is how many tokens there are; others after them are not attended to."""
        self._calls, self._attend, self._own, self._count = calls, attend, own, count
        self._layer = 0

    def __call__(self, call: AttentionCall) -> Tensor:
        layer, self._layer = self._layer, self._layer + 1
        if layer >= len(self._calls) or self._calls[layer].module is not call.module:
            raise RuntimeError(f"{type(call.module).__name__} asks for attention in another order than before.")
        query, key, value = (tensor[0].transpose(0, 1)[: self._count] for tensor in (call.query, call.key, call.value))
        heads, most, value_dim = query.shape[1], self._own.kv_heads, value.shape[-1]
        spread = self._calls[layer].spread(most)
        if spread is not None:
            key, value = (each.repeat_interleave(spread, 1) for each in (key, value))
        # Zeros beyond a head change neither its products nor, cut off, what is attended; nor do heads of zeros after
        # all others.
        counts = heads // key.shape[1] * most, most, most
        given = (padded(each, n, self._own.head_dim) for each, n in zip((query, key, value), counts, strict=True))
        attended = self._attend(layer, *given)[None, :, :heads, :value_dim]
        missing = call.query.shape[2] - self._count
        return F.pad(attended, (0, 0, 0, 0, 0, missing)) if missing else attended


class _Given(nn.Module):
    """Stands where a body was: what the last layer made is given to it."""

    def forward(self, input_ids: None = None, *, inputs_embeds: Tensor, **options: Any) -> _Hidden:
        return _Hidden(inputs_embeds)


class _Hidden:
    """What a body returns, whichever class of output that is: hidden states, and nothing of anything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


def _without(module: nn.Module, place: list[str]) -> Any:
    """A module that shares everything with another but the submodule at `place`, where there is a `_Given`."""
    if not place:
        return _Given()
    first, *below = place
    own = copy.copy(module)
    own._modules = {**module._modules, first: _without(module.get_submodule(first), below)}
    return own


def _names_of(config: WideConfig, causal: Any, embedding: nn.Module) -> WideNames:
    """Every tensor of floating point that checkpoints have, once."""
    head = causal.get_output_embeddings()
    names = {id(tensor): name for name, tensor in reversed(causal.state_dict(keep_vars=True).items())}
    tensors = []
    for name, tensor in causal.state_dict(keep_vars=True).items():
        if names[id(tensor)] == name and tensor.is_floating_point():
            own = "embedding.weight" if tensor is embedding.weight else f"causal.{name}"
            tensors.append(PublishedTensor(name, tuple(tensor.shape), own))
    places = {id(module): name for name, module in causal.named_modules()}
    return WideNames(config.identity, f"{places[id(head)]}.weight", tuple(tensors))

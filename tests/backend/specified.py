"""Models of every kind that a specification can describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from runtime.model.configuration import PublishedTensor
from runtime.model.families.causal import CausalConfig
from runtime.model.rotary import Llama3Scaling, Rotary, YarnScaling
from runtime.model.specification import LayerSpecification, NormPlaces, Specification
from runtime.model.transformer import Transformer
from tests.backend.conversations import CONTEXT, sharpened


class SpecifiedConfig(CausalConfig, frozen=True, kw_only=True):
    """Of any specification; tensors have the names that causal models give them."""

    @property
    def identity(self) -> object:
        return self.specification

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        own, causal = self.specification, super().published_tensors()
        if own.injection != "adapter":
            return causal
        width = own.width
        adapter = PublishedTensor("adapter.weight", (width, 2 * width), "adapter.weight")
        bias = PublishedTensor("adapter.bias", (width,), "adapter.bias")
        return (*causal, adapter, bias) if own.adapter_bias else (*causal, adapter)


def model_of(specification: Specification, seed: int) -> Transformer:
    """Random weights, of which every one matters."""
    places = [name for name in ("before", "branch", "total") if getattr(specification.norms, name)]
    halves = ("attention", "mlp")
    config = SpecifiedConfig(
        family="specified",
        specification=specification,
        raw={},
        norms={f"{half}_{place}_norm": f"{half}_norms.{place}" for half in halves for place in places},
        is_fused=False,
        init_std=0.2,
    )
    return sharpened(Transformer(config), seed)


@st.composite
def rotaries(draw: st.DrawFn, head_dim: int) -> Rotary:
    return Rotary(
        base=draw(st.sampled_from([100.0, 10_000.0])),
        width=2 * draw(st.integers(1, head_dim // 2)),
        pairs=draw(st.sampled_from(["neighbours", "halves"])),
        scaling=draw(
            st.sampled_from(
                [
                    None,
                    None,
                    YarnScaling(factor=4.0, original_max_position_embeddings=20),
                    Llama3Scaling(
                        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
                    ),
                ]
            )
        ),
    )


@st.composite
def specifications(draw: st.DrawFn, vocab: st.SearchStrategy[int]) -> Specification:
    """Of small models; each kind is drawn by itself, so that all meet."""

    def one_of(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    either: Callable[[], bool] = lambda: draw(st.booleans())  # noqa: E731
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), one_of(2, 6, 8, 14, 16, 24)
    turning = draw(st.lists(rotaries(head_dim), min_size=1, max_size=2))
    injection = one_of("adapter", "embedded", "state")
    loops = injection != "embedded" and draw(st.integers(0, 3)) > 0
    prelude, core = draw(st.integers(0, 1)), draw(st.integers(1, 2))
    coda = draw(st.integers(0, 1))
    layers = tuple(
        LayerSpecification(
            rotary=draw(st.sampled_from([None, *range(len(turning))])),
            window=one_of(None, 1, 5, 16, 17, 40),
        )
        for _ in range(prelude + core + coda)
    )
    size = draw(vocab)
    return Specification(
        width=draw(st.integers(5, 50)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=draw(st.integers(1, 100)),
        vocab_size=size,
        table_rows=size + one_of(0, 3),
        max_context=CONTEXT,
        prelude_layers=prelude,
        core_layers=core,
        coda_layers=coda,
        layers=layers,
        rotaries=tuple(turning),
        norms=one_of(
            NormPlaces(before=True),
            NormPlaces(before=True, total=True),
            NormPlaces(before=True, branch=True),
            NormPlaces(before=False, branch=True),
            NormPlaces(before=False, total=True),
            NormPlaces(before=True, branch=True, total=True),
        ),
        norm_eps=one_of(1e-6, 1e-3),
        norm_offset=one_of(0.0, 1.0),
        query_key_norm=one_of("none", "heads", "whole"),
        projection_bias=one_of("none", "query_key", "query_key_value"),
        output_bias=either(),
        mlp_bias=either(),
        activation=one_of("silu", "gelu", "gelu_tanh"),
        attention_scale=one_of(head_dim**-0.5, 0.2),
        attention_softcap=one_of(None, 3.0, 50.0),
        logits_softcap=one_of(None, 5.0, 30.0),
        embedding_scale=one_of(1.0, 3.0),
        residual_scale=one_of(1.0, 0.5),
        logits_scale=one_of(1.0, 0.25),
        tied=either(),
        injection=injection,
        adapter_bias=injection == "adapter" and either(),
        state_std=one_of(0.0, 0.0, 0.1) if injection == "adapter" else 0.0,
        norms_iterations=either(),
        norms_coda=either(),
        norms_head=either(),
        exit_gate=either(),
        mean_recurrence=draw(st.integers(2, 4)) if loops else 1,
    )


@st.composite
def specified(draw: st.DrawFn) -> Transformer:
    return model_of(draw(specifications(st.integers(8, 200))), draw(st.integers(0, 2**16)))

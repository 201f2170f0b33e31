"""Which transformers native code computes."""

from __future__ import annotations

from runtime.model.specification import LayerSpecification, NormPlaces, Specification


def unsupported(own: Specification) -> str | None:
    """What of a specification native code lacks; None if it has all."""
    lacks = {
        "norms in these places": own.norms not in (NormPlaces(), NormPlaces(total=True)),
        "norms with an offset": own.norm_offset != 0,
        "norms of queries and keys": own.query_key_norm != "none",
        "bias of values": own.projection_bias == "query_key_value",
        "bias of outputs": own.output_bias or own.mlp_bias,
        "activation of this kind": own.activation != "silu",
        "scales of attention, residuals or logits": (own.attention_scale, own.residual_scale, own.logits_scale)
        != (own.head_dim**-0.5, 1.0, 1.0),
        "soft caps": own.attention_softcap is not None or own.logits_softcap is not None,
        "windows, or layers without rotary embedding": any(layer != LayerSpecification() for layer in own.layers),
        "several or partial rotary embeddings": [rotary.width for rotary in own.rotaries] != [own.head_dim],
        "iterations that start from the last one's norm": own.injection == "state" or own.norms_iterations,
        "norms before coda and head as these": (own.norms_coda, own.norms_head) != (own.injection == "adapter", True),
        "exit gate": own.exit_gate,
    }
    return next((what for what, is_lacking in lacks.items() if is_lacking), None)

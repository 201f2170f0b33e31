"""Which depth policies' exit tests native code knows."""

from __future__ import annotations

from policies import Bounding, Cosine, DepthPolicy, GateExit, LatentDiff

BY_POLICY, NOTHING, GATE, LATENT_DIFF, COSINE = range(-1, 4)
"""How exits are tested: by the policy itself, in PyTorch; not at all; or by what native code measures, for the last two
of which it remembers latent states."""

_MEASURED: dict[type, int] = {GateExit: GATE, LatentDiff: LATENT_DIFF, Cosine: COSINE}


def criterion_of(policy: DepthPolicy) -> int:
    """How the exits of a policy's tokens are tested. A policy with an exit test of its own is tested by that."""
    if policy.exit_test is Bounding and isinstance(policy, Bounding):
        return criterion_of(policy.criterion)
    if policy.reads == "nothing":
        return NOTHING
    return _MEASURED.get(policy.exit_test, BY_POLICY)

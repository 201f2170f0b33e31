"""Compiles the Triton kernels for CUDA devices that need not be there, down to their machine code.

Triton's interpreter runs more Python than its compiler takes. Run as `python -m tests.backend.compile_triton`; prints
one line a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runtime.backend.attention import PagedCache
from runtime.backend.torch import triton_kernel
from runtime.backend.torch.triton_attention import MOST_SPLITS, STAGES, WARPS, constants

AMPERE, HOPPER = 80, 90
POINTERS = {
    **dict.fromkeys(("depths", "page_table", "rows", "positions", "slots", "page_parts", "has_holes"), "*i32"),
    **dict.fromkeys(("partial", "weights"), "*fp32"),
}
STORED = ("query", "key", "value", "keys", "values", "out")
SHAPES = [
    (torch.bfloat16, 55, 55, 96),
    (torch.bfloat16, 32, 8, 128),
    (torch.float32, 12, 4, 24),
]
"""Memory's dtype, heads, heads of keys and values, head width."""


def cache_of(dtype: torch.dtype, kv_heads: int, head_dim: int) -> PagedCache:
    """Shapes alone."""
    stored = torch.empty(6, 4096, 16, kv_heads, head_dim, dtype=dtype, device="meta")
    depths = torch.empty(4096, 16, dtype=torch.int32, device="meta")
    return PagedCache(stored, stored, depths, torch.empty(256, 256, dtype=torch.int32, device="meta"))


def compiled(kernel: Any, fixed: dict[str, Any], dtype: torch.dtype, capability: int) -> Any:
    """A kernel for arguments of the kinds that the engine passes: pointers and strides are multiples of 16."""
    stored = "*fp32" if dtype is torch.float32 else "*bf16"
    constant = {param.name: fixed[param.name] for param in kernel.params if param.is_constexpr}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        plain = "fp32" if name == "scale" else "i32"
        kind = "constexpr" if name in constant else stored if name in STORED else POINTERS.get(name, plain)
        signature[name] = kind
        if kind.startswith("*") or name.endswith("stride"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constant, attrs=attributes)
    options = {"num_warps": WARPS, "num_stages": STAGES}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    done = set[tuple[Any, ...]]()
    for capability in (AMPERE, HOPPER):
        for dtype, heads, kv_heads, head_dim in SHAPES:
            for slots, single, holed in ((1, True, False), (4, False, True)):
                fixed = constants(cache_of(dtype, kv_heads, head_dim), heads)
                fixed |= {"column_slots": slots, "single": single, "may_have_holes": holed, "most_splits": MOST_SPLITS}
                for name in ("store", "attend", "combine"):
                    kernel = getattr(triton_kernel, name)
                    used = tuple(fixed[param.name] for param in kernel.params if param.is_constexpr)
                    if (name, capability, dtype, used) in done:
                        continue
                    done.add((name, capability, dtype, used))
                    binary = compiled(kernel, fixed, dtype, capability)
                    shared, size = binary.metadata.shared, len(binary.asm["cubin"])
                    print(
                        f"{name} sm_{capability} {dtype} {heads}/{kv_heads}x{head_dim}: {shared} shared, {size} bytes"
                    )


if __name__ == "__main__":
    main()

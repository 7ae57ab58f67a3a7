"""What XNNPACK's kernels and ExecuTorch's embedding kernels hold, as data.

Source: backends/xnnpack (operators/node_visitor.py, runtime/XNNCompiler.cpp) and kernels/quantized of ExecuTorch 1.4.
"""

from __future__ import annotations

from drawplate.encoding import Encoding, per_channel, per_head, per_token
from drawplate.target import Choice, Target

ACTIVATION = per_token(8)
"""XNNPACK's qdint8: one scale and zero point per row, chosen when it runs."""
HEADS = per_head(8)
"""What llama.custom_quantized_sdpa multiplies: queries, and keys and values in the cache."""
GROUPS4 = Encoding(4, (1, 32), scale="bf16")
"""qbint4; the group may be any multiple of 32 that divides the row."""
CHANNELS4 = per_channel(4)
CHANNELS8 = per_channel(8)
GROUP = 32

LINEAR = (
    Choice(GROUPS4, ACTIVATION, group_multiple=GROUP),
    Choice(CHANNELS4, ACTIVATION),
    Choice(CHANNELS8, ACTIVATION),
    Choice(None),
)
EMBEDDING = (
    Choice(CHANNELS8),
    Choice(CHANNELS4),
    Choice(per_channel(2)),
    *(Choice(Encoding(bits, (1, 32)), group_multiple=GROUP) for bits in (8, 4, 2)),
    Choice(None),
)

TARGET = Target(
    name="xnnpack",
    menu={"linear": LINEAR, "embedding": EMBEDDING},
    float_dtypes=("f32",),
    tied_bits=(8,),
    rotates=True,
    operator_bytes=430,  # measured on 30 layers: 310 kB beside the weights, 730 operators
)


def is_groups4(encoding: Encoding) -> bool:
    """4 bits in groups of a multiple of 32, bf16 scales."""
    return LINEAR[0].admits(encoding, ACTIVATION)

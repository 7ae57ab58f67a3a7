"""Sets of operators that are alike, for rewriting."""

from __future__ import annotations

from drawplate.canonical.match import aten

MAX = 9223372036854775807
"""torch's "to the end" of a slice."""

UNARY = (
    aten.abs.default,
    aten.ceil.default,
    aten.clamp.default,
    aten.elu.default,
    aten.exp.default,
    aten.floor.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.log.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.relu.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sqrt.default,
    aten.square.default,
    aten.tanh.default,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.mul.Scalar,
    aten.div.Scalar,
    aten.rsub.Scalar,
)
"""One tensor in, one of the same shape out, each element by itself."""

BINARY = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
)
"""Two tensors (or a tensor and a number), broadcast against each other, each element by itself."""

NORMS = (aten.rms_norm.default, aten.layer_norm.default)
"""args[1] is the shape that they normalise over."""

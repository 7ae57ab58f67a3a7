"""A dynamic activation is quantised as the runtime does it: read back through XNNPACK's own kernel."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drawplate.encoding import fake_quantize_dynamic, per_token

WIDTH = 32


class Identity(nn.Module):
    """A linear whose int8 weight is the identity with scale 1: its output is its input as it reads back."""

    weight: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(WIDTH, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("zero", torch.zeros(WIDTH, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """x: [64, WIDTH] -> the same."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        q = ops.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
        x = ops.dequantize_per_token.default(q, scale, zero, -128, 127, torch.int8, torch.float32)
        w = ops.dequantize_per_channel.default(self.weight, self.scale, self.zero, 0, -128, 127, torch.int8)
        return torch.nn.functional.linear(x, w)


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The identity linear, lowered to XNNPACK and loaded. The buffer must outlive the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.quantization.fx._decomposed
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
            XnnpackDynamicallyQuantizedPartitioner,
        )
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

        program = torch.export.export(Identity(), (torch.zeros(64, WIDTH),), strict=False)
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackDynamicallyQuantizedPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        buffer = edge.to_executorch().buffer
        yield _load_for_executorch_from_buffer(buffer)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("shift", [0.0, 3.0, -1.0, 0.1])
def test_the_reference_is_the_runtime(kernel: Any, size: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    differ, total = 0, 0
    for _ in range(40):
        x = (torch.randn(64, WIDTH, generator=generator) + shift) * size
        x[0], x[1], x[2] = 0, x[1].abs(), -x[2].abs()
        y = kernel.forward([x])[0]
        ours = fake_quantize_dynamic(x, per_token())
        differ += int((y != ours).sum())
        total += y.numel()
        step = (x.amax(1, keepdim=True).clamp(min=0) - x.amin(1, keepdim=True).clamp(max=0)) / 255
        assert bool(((y - ours).abs() <= step * 1.001).all())
    assert differ <= total * 1e-4  # a value on a tie may fall to either side: the kernel may fuse x * m - z

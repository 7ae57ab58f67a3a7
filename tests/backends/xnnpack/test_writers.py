"""Every operator that XNNPACK is given, against torch, in the stock runtime. Many at a time: lowering takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from xnnkit import called, emitted, relative, traced

from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.backends.xnnpack.lower_ops import RULES
from drawplate.program import Dim, Program

ROWS = {"x": {0: Dim("n", 1, 64)}}
SIZES = (5, 1, 33)


class Pointwise(nn.Module):
    """Each result is one operator, or one way to write it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(16))
        self.number = nn.Parameter(torch.tensor(1.7))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        positive = x.abs() + 0.1
        return (
            F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"), F.relu(x), F.hardswish(x), F.elu(x, 0.7),
            F.leaky_relu(x, 0.2), F.hardtanh(x, -0.3, 0.8), x.sigmoid(), x.tanh(), x.exp(), x.neg(), x.square(),
            x.ceil(), x.floor(), positive.log(), positive.sqrt(), positive.rsqrt(), positive.reciprocal(),
            x.pow(2), x.pow(3), x.pow(4), positive.pow(0.5), positive.pow(-0.5), positive.pow(-1),
            x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.2), x + 1.5, x - 2, 3 - x, x * 0.3, x / 7,
            x + self.scale, x - self.scale, x * self.scale, positive / positive.sqrt(), x * self.number,
            torch.add(x, self.scale, alpha=3), torch.sub(x, self.scale, alpha=-2), torch.rsub(x, 2.0, alpha=3),
            torch.maximum(x, self.scale), torch.minimum(x, self.scale), x.abs(),
        )  # fmt: skip


class Shapes(nn.Module):
    """Reshaping, cutting and joining over [n, 4, 6]."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2  # so that there is something to compute
        a, b = y.chunk(2, dim=-1)
        c, d, e = y.split([1, 2, 3], dim=2)
        return (
            y.flatten(1) + 1, y.unflatten(2, (2, 3)) + 1, y.unsqueeze(1) + 1, y[:, :1].squeeze(1) + 1,
            y.reshape(y.shape[0], 8, 3) + 1, y.transpose(1, 2) + 1, y.permute(2, 0, 1) + 1, y[..., 1:5] + 1,
            y[:, -2:] + 1, y[:, 2] + 1, torch.cat([b, a], -1), torch.cat([y] * 7, 1), torch.stack([a, b], 2) * 1.5,
            e.mean(-1, keepdim=True) + c, d * d, y.mean(-1),
        )  # fmt: skip


class Rows(nn.Module):
    """What mixes a row: norms, softmax, linears, products of computed matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.LayerNorm(32), nn.LayerNorm(32, elementwise_affine=False)
        self.rms, self.bare = nn.RMSNorm(32, eps=1e-6), nn.RMSNorm(32, elementwise_affine=False)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        up = self.up(x)
        pairs = up.reshape(x.shape[0], 6, 8)
        return (
            self.norm(x), self.plain(x), self.rms(x), self.bare(x), x.softmax(-1), up, self.down(up),
            pairs @ pairs.transpose(1, 2), torch.bmm(pairs, pairs.transpose(1, 2)),
        )  # fmt: skip


MODULES = {
    "pointwise": (Pointwise, torch.randn(5, 16, generator=torch.Generator().manual_seed(0))),
    "shapes": (Shapes, torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1))),
    "rows": (Rows, torch.randn(5, 32, generator=torch.Generator().manual_seed(2))),
}


def build(name: str) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    kind, x = MODULES[name]
    module = kind()
    return module, traced(module, x, dynamic=ROWS)


@pytest.mark.parametrize("name", MODULES)
def test_against_torch(name: str, tmp_path: Path) -> None:
    module, program = build(name)
    emission = emitted(program, tmp_path, XnnpackBackend(batch=64))
    assert emission.fallbacks == ()
    assert emission.notes[0].startswith("1 delegates")
    for n in SIZES:
        x = torch.randn(n, *MODULES[name][1].shape[1:], generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            wanted = module(x)
        for i, (mine, theirs) in enumerate(zip(called(tmp_path, x), wanted, strict=True)):
            assert mine.shape == theirs.shape
            assert relative(mine, theirs) < 2e-6, f"result {i} of {n} rows"


def test_every_rule_is_covered() -> None:
    """A rule without a test against torch is a rule that may be wrong."""
    seen = {node.target for name in MODULES for node in build(name)[1].nodes()}
    # aten.slice writes what split and chunk become; test_rotations.py has drawplate.hadamard; the others are other
    # spellings of what is tested
    spelled_otherwise = {
        "aten.view.default", "aten.squeeze.dims", "aten._softmax.default", "aten.add.Scalar", "aten.sub.Scalar",
        "aten.mul.Scalar", "aten.div.Scalar", "aten.div.Tensor_mode", "drawplate.encode.default",
        "aten.unflatten.int", "aten.flatten.using_ints", "aten.rsub.Scalar", "drawplate.hadamard.default",
    }  # fmt: skip
    missing = {str(t) for t in RULES if t not in seen} - spelled_otherwise
    assert missing == set()

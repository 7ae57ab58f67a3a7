"""What the backend refuses, as text."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from architectures import captured, captured_convnet
from onnxkit import ASSETS, stored
from torch import nn
from xnnkit import CACHED, decoder, passed, preset, traced

from drawplate.backendbase import weight_rows
from drawplate.backends.onnx.backend import OnnxBackend
from drawplate.backends.onnx.runner import session
from drawplate.backends.onnx.target import TARGETS, Form, linear_why_not, table_why_not
from drawplate.encoding import Encoding
from drawplate.errors import BackendError, RuntimeMissing
from drawplate.menu import _entries
from drawplate.program import Program
from drawplate.text import parse_program

QDQ = OnnxBackend(form="qdq")
NARROW = """// drawplate text 1
program narrow(%input_ids: i64[b, s], %position_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 8 {
  weight @table.weight : f32[11, 4] = seed(1)
  %0 : f32[b, s, 4]    = aten.embedding(@table.weight, %input_ids)
  %1 : f32[b, 1, s, 4] = aten.unsqueeze(%0, 1)
  %2 : f32[b, 1, s, 4] = aten.neg(%1)
  %3 : f32[b, 1, s, 4] = aten.scaled_dot_product_attention(%1, %2, %1, None, 0.0, True)
  %4 : f32[b, s, 4]    = aten.squeeze.dim(%3, 1)
  %5 : f32[b, s, 11]   = aten.linear(%4, @table.weight)
  return %5
}
"""


def refused(program: Program, backend: OnnxBackend | None = None) -> list[tuple[str, str]]:
    """Each reason and what would help, once."""
    return list(dict.fromkeys((r.why, r.fix) for r in (backend or OnnxBackend()).refusals(program)))


@pytest.mark.parametrize(
    ("options", "why", "fix"),
    [
        (
            "bits=3,block=1x32",
            "its weight is 'i3 block 1x32 sym scale bf16': ONNX has no integers of 3 bits",
            "use 8, 4 or 2 bits",
        ),
        (
            "bits=8,block=1x8",
            "its weight is 'i8 block 1x8 sym scale bf16': MatMulNBits has blocks of 16, 32, 64, .., not of 8",
            "use block=1x32, or onnx{form=qdq}",
        ),
        (
            "bits=8,block=-1x-1",
            "its weight is 'i8 block -1x-1 sym scale bf16': MatMulNBits has no scale for 64 rows together",
            "use block=1x32",
        ),
    ],
)
def test_encodings_that_matmul_nbits_does_not_hold(options: str, why: str, fix: str) -> None:
    assert (why, fix) in refused(passed(decoder(), f"quantize-weights{{{options},scale=bf16}}"))


def test_groups_that_the_operators_do_not_hold() -> None:
    two, shorter = Encoding(2, (1, 512)), Encoding(4, (1, 64), ragged=True)
    why = "MatMulNBits has blocks of 16, 32, 64, .. 256, not of 512"
    assert linear_why_not(two, (64, 1024), "nbits") == (why, "use block=1x32, or onnx{form=qdq}")
    assert linear_why_not(two, (64, 1024), "qdq") is None
    assert linear_why_not(replace(two, bits=4), (64, 1024), "nbits") is None
    for form in get_args(Form):
        for ask in (linear_why_not, table_why_not):
            found = ask(shorter, (64, 96), form)
            assert found is not None
            assert found[0] == "the last group of a row is shorter than 64, which is not written here"
        assert linear_why_not(shorter, (64, 128), form) is None


def test_rows_that_are_no_power_of_two() -> None:
    """Of 64 they are a block like any other; of 96 only ONNX's own operators have them."""
    program = stored("quantize-weights{bits=4,block=1x-1}")
    found = OnnxBackend().check(program)
    assert [r.site for r in found] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert found[0].why.endswith("MatMulNBits has blocks of 16, 32, 64, .., not of a whole row of 96")
    assert "modeling_llama.py" in found[0].source
    assert refused(program, QDQ) == []


def test_tables() -> None:
    (found,) = refused(stored("quantize-embedding{bits=4,block=1x8}", tied=False))
    assert found[0].endswith("GatherBlockQuantized has blocks of 16, 32, 64, .., not of 8")
    assert found[1] == "use block=1x32, or 8 bits"
    (found,) = refused(stored("quantize-embedding{bits=4,block=1x32}", tied=False), QDQ)
    assert found[0].endswith("ONNX's Gather reads no tensors of 4 bits")
    assert found[1] == "use 8 bits, or onnx{form=nbits}"
    assert table_why_not(Encoding(8, (-1, -1)), (97, 64), "nbits") == (
        "rows are read one by one, and 97 share a scale",
        "use block=1x-1 or 1x32",
    )


def test_rounded_activations_and_caches() -> None:
    program = passed(decoder(), f"quantize-weights{{bits=8,block=1x32}},quantize-activations{{bits=8}},{CACHED}")
    assert refused(program) == [
        (
            "MatMulNBits computes on floating-point activations, or rounds them by a rule of its own",
            "leave out quantize-activations and quantize-cache; onnx{accuracy_level=4} rounds by its rule",
        )
    ]
    found = refused(passed(decoder(), f"quantize-cache{{bits=8}},{CACHED}"))
    assert ("the runtime's attention keeps no cache of integers by token", "leave out quantize-cache") in found


def test_what_is_not_float32() -> None:
    assert refused(preset("bf16")) == [
        ("it computes in bfloat16, and the runtime's kernels for CPUs in float32", "leave out cast")
    ]


def test_operators_without_a_rule() -> None:
    found = {r.op for r in OnnxBackend().check(captured_convnet())}
    assert found == {"aten.conv2d", "aten.batch_norm", "aten.max_pool2d"}
    program = captured("gemma2-softcap")
    assert (
        "it takes places of several axes, or a mask",
        "replace it in the model, or take another backend",
    ) in refused(program)
    assert OnnxBackend().predict(program, ASSETS) == weight_rows(program)


def test_heads_that_the_kernel_does_not_take() -> None:
    program = passed(parse_program(NARROW), "add-kv-cache{context=8}")
    assert refused(program) == [("heads of 4; the kernel takes multiples of 8", "leave out add-kv-cache")]


def test_turned_activations() -> None:
    found = refused(passed(decoder(), "fold-norms,rotate{r4=true}"))
    assert tuple(dict.fromkeys(why for why, _ in found)) == ("nothing in onnx turns activations while the model runs",)


def test_the_menu_is_held() -> None:
    """All that is offered to an allocator passes the check, form by form."""
    for form, target in TARGETS.items():
        assert OnnxBackend(form=form).target is target
        for role, why_not in (("linear", linear_why_not), ("embedding", table_why_not)):
            for encoding in _entries(target.menu[role]):
                assert encoding is None or why_not(encoding, (512, 256), form) is None


def test_options_without_sense() -> None:
    with pytest.raises(ValueError, match="accuracy_level 5: MatMulNBits has 0 to 4"):
        OnnxBackend(accuracy_level=5)
    with pytest.raises(ValueError, match="accuracy_level is MatMulNBits'; form=qdq has none"):
        OnnxBackend(form="qdq", accuracy_level=4)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnx.helper", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError) as missing:
        OnnxBackend().predict(decoder(), ASSETS)
    assert str(missing.value) == (
        "the onnx package is missing\n  why:   it writes the file\n  do:    pip install 'drawplate[onnx]'"
    )
    with pytest.raises(RuntimeMissing, match="ONNX Runtime is not installed"):
        session(Path("model.onnx"))


def test_a_program_of_one_operator() -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    assert refused(traced(Double(), torch.randn(3))) == []

"""What spec.check refuses, one broken program after the other."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

from drawplate.encoding import Encoding, Grid, QTensor, encode
from drawplate.errors import DrawplateError
from drawplate.program import Dim, Program, Spec
from drawplate.spec import STAGES, check, misfits
from drawplate.text import parse_program

HEADER = "// drawplate text 1\nprogram m(%x: f32[b, 4]) where 1 <= b <= 8 {\n"
ENCODE = '%0 = drawplate.encode(%x, "i8 block -1 asym scale f32 dynamic")'


def program(*lines: str) -> Program:
    return parse_program(HEADER + "\n".join(lines) + "\n}")


def plain() -> Program:
    return program("weight @w : f32[3, 4] = seed(1)", "%0 = aten.linear(%x, @w)  // up", "return %0")


def reasons(p: Program, stage: str = "canonical") -> list[str]:
    return [str(r) for r in check(p, stage)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_plain_program_is_legal_at_every_stage(stage):
    assert reasons(plain(), stage) == []


def test_an_unknown_stage():
    with pytest.raises(DrawplateError, match="the stages are captured, canonical, quantised, cached"):
        check(plain(), "done")


STAGED = {
    "an assert": (
        program("%0 = aten._assert_tensor_metadata(%x, None, None, f32)", "%1 = aten.silu(%x)", "return %1"),
        ("captured",),
        "an assert; canonicalise() drops it",
    ),
    "a cast to what it is": (
        program("%0 = aten.to.dtype(%x, f32)  // up", "return %0"),
        ("captured",),
        "up (aten.to.dtype): a cast to torch.float32, which it is; canonicalise() drops it",
    ),
    "a copy": (program("%0 = aten.clone(%x)", "return %0"), ("captured",), "a copy: values never change"),
    "a value written in place": (
        program("%0 = aten.silu(%x)", "%1 = aten.relu_(%0)", "return %1"),
        ("captured",),
        "it writes its argument 'self', which is not a state tensor",
    ),
    "a stored weight": (
        program("weight @w : i4[3, 4] block 1x4 sym scale f32", "%0 = aten.linear(%x, @w)", "return %0"),
        ("quantised", "cached"),
        "w (weight): stored as 'i4 block 1x4 sym scale f32' before the stage 'quantised'",
    ),
    "an encoded activation": (
        program(ENCODE, "return %0"),
        ("quantised", "cached"),
        "an activation is encoded before the stage 'quantised'",
    ),
    "state": (
        program("state @c : f32[3]", "%0 = aten.add.Tensor(@c, @c)", "return (%x, %0)"),
        ("cached",),
        "c (state): state before the stage 'cached'",
    ),
    "causal attention": (
        parse_program(
            "// drawplate text 1\nprogram m(%q: f32[1, 2, s, 4]) where 2 <= s <= 9 {\n"
            "%0 = aten.scaled_dot_product_attention(%q, %q, %q, None, 0.0, True)\nreturn %0\n}"
        ),
        ("captured", "canonical", "quantised"),
        "causal attention without a cache; add-kv-cache turns it into its cached form",
    ),
}


@pytest.mark.parametrize("case", STAGED)
def test_what_depends_on_the_stage(case):
    p, legal, why = STAGED[case]
    found = {stage: reasons(p, stage) for stage in STAGES}
    assert [stage for stage in STAGES if not found[stage]] == list(legal)
    assert all(why in found[stage][0] for stage in STAGES if found[stage])


def node(p: Program, op: str) -> torch.fx.Node:
    return next(n for n in p.graph.nodes if n.op == op)


def no_type(p: Program) -> Program:
    del node(p, "call_function").meta["val"]
    return p


def a_tag(p: Program) -> Program:
    node(p, "call_function").meta["MY_TAG"] = 1
    return p


def a_python_function(p: Program) -> Program:
    node(p, "call_function").target = torch.relu
    return p


def an_object(p: Program) -> Program:
    node(p, "call_function").kwargs = {"bias": slice(3)}
    return p


def an_indexed_device(p: Program) -> Program:
    node(p, "call_function").kwargs = {"bias": torch.device("cuda:1")}
    return p


def another_input(p: Program) -> Program:
    return replace(p, inputs=(Spec("x", torch.float32, ("b", 5)),))


def one_input_more(p: Program) -> Program:
    return replace(p, inputs=(*p.inputs, Spec("y", torch.float32, (1,))))


def an_undeclared_dim(p: Program) -> Program:
    return replace(p, dims=(Dim("s", 1, 8),))


def an_empty_dim(p: Program) -> Program:
    return replace(p, dims=(Dim("b", 8, 7),))


def a_missing_weight(p: Program) -> Program:
    return replace(p, weights=MappingProxyType({}))


def an_unread_weight(p: Program) -> Program:
    return replace(p, weights=MappingProxyType({**p.weights, "v": torch.zeros(3)}))


def another_shape(p: Program) -> Program:
    return replace(p, weights=MappingProxyType({"w": torch.zeros(3, 5)}))


def one_name_twice(p: Program) -> Program:
    return replace(p, state=(Spec("w", torch.float32, (3, 4)),))


def symbolic_state(p: Program) -> Program:
    return replace(p, state=(Spec("c", torch.float32, ("b",)),))


def a_constant_returned(p: Program) -> Program:
    node(p, "output").args = (3,)
    return p


def no_end(p: Program) -> Program:
    p.graph.erase_node(node(p, "output"))
    return p


BROKEN: dict[Callable[[Program], Program], str] = {
    no_type: "up (aten.linear): it has no type; end the pass with editor.finish()",
    a_tag: "up (aten.linear): meta holds MY_TAG; state is in the Program or nowhere",
    a_python_function: "up (python.torch.relu): not a registered operator; inline it, or register a torch operator",
    an_object: "up (aten.linear): an argument is slice(None, 3, None), which a program cannot write",
    an_indexed_device: "an argument is device(type='cuda', index=1), which a program cannot write",
    another_input: "x (placeholder): declared f32[b, 5], in the graph f32[b, 4]",
    one_input_more: "m: 2 inputs are declared, the graph has 1",
    an_undeclared_dim: "x (input): its length 'b' is not a dim of the program",
    an_empty_dim: "b: no length is between 8 and 7; lengths start at 1",
    a_missing_weight: "w (get_attr): there is no weight or state 'w'",
    an_unread_weight: "v (weight): nothing reads it",
    another_shape: "'w' is stored as torch.float32 [3, 5], read as torch.float32 [3, 4]",
    one_name_twice: "w: 2 weights and state have this name",
    symbolic_state: "c (state): its length 'b' is not a number: state is allocated once",
    a_constant_returned: "m (output): it returns no value",
    no_end: "m (output): 0 outputs; there is one, and it is the last node",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_what_is_never_legal(damage):
    found = reasons(damage(plain()), "cached")
    assert any(BROKEN[damage] in reason for reason in found), found


def test_every_reason_is_given():
    broken = an_unread_weight(a_tag(no_type(plain())))
    assert len(reasons(broken)) == 3


def test_the_models_own_line_is_told():
    p = program("%0 = aten.clone(%x)  // up", "return %0")
    node(p, "call_function").meta["source"] = "modeling_x.py:41: `x = x.clone()`"
    assert "[modeling_x.py:41: `x = x.clone()`]" in reasons(p)[0]


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("i8 block -1 asym scale f32", "is not dynamic: there is nowhere to keep a static scale"),
        ("i8 block 3 asym scale f32 dynamic", "a group size of 3 does not divide axis 1 of length 4"),
        ("i8 block 1x1x1 asym scale f32 dynamic", "a block of 3 axes for a tensor of 2"),
        ("int8", "not an encoding: 'int8'"),
    ],
)
def test_encoded_activations(encoding, why):
    p = program(ENCODE, "return %0")
    node(p, "call_function").args = (node(p, "placeholder"), encoding)
    assert any(why in reason for reason in reasons(p, "quantised"))


def test_a_block_over_a_symbolic_axis_is_legal():
    p = program(ENCODE, "return %0")
    node(p, "call_function").args = (node(p, "placeholder"), "i8 block 2x-1 asym scale f32 dynamic")
    assert reasons(p, "quantised") == []


GOOD = encode(torch.arange(16.0).reshape(2, 8) / 3, Encoding(4, (1, 4), symmetric=False, scale="bf16"))
SYMMETRIC = encode(torch.arange(16.0).reshape(2, 8), Encoding(4, (1, 4)))


def with_grid(q: QTensor, scale: torch.Tensor | None = None, zero: torch.Tensor | None = None) -> QTensor:
    return replace(q, grid=Grid(q.grid.scale if scale is None else scale, q.grid.zero_point if zero is None else zero))


MISFITS = {
    "block": (replace(GOOD, encoding=replace(GOOD.encoding, block=(1, 3))), "a group size of 3 does not divide axis 1"),
    "axes": (replace(GOOD, encoding=replace(GOOD.encoding, block=(1, 1, 4))), "a block of 3 axes for a tensor of 2"),
    "shape": (replace(GOOD, codes=GOOD.codes[:, :4]), "codes are torch.int8 [2, 4]"),
    "dtype": (replace(GOOD, codes=GOOD.codes.float()), "wants torch.int8 [2, 8]"),
    "packed": (replace(GOOD, packed=True), "wants torch.uint8 [2, 4]"),
    "scale shape": (with_grid(GOOD, scale=torch.ones(2)), "scale has shape [2]"),
    "dynamic": (
        replace(GOOD, encoding=replace(GOOD.encoding, dynamic=True)),
        "is dynamic, and a weight does not change",
    ),
    "codes": (replace(GOOD, codes=GOOD.codes + 9), "codes from 1 to 16"),
    "negative scale": (with_grid(GOOD, scale=-GOOD.grid.scale), "a scale is not a positive number"),
    "nan scale": (with_grid(GOOD, scale=GOOD.grid.scale * float("nan")), "a scale is not a positive number"),
    "unrounded scale": (with_grid(GOOD, scale=GOOD.grid.scale * 1.0001), "a scale is not representable in bf16"),
    "fraction": (with_grid(GOOD, zero=GOOD.grid.zero_point + 0.5), "a zero point is not a whole number from -8 to 7"),
    "far": (with_grid(GOOD, zero=GOOD.grid.zero_point + 100), "a zero point is not a whole number from -8 to 7"),
    "symmetric": (with_grid(SYMMETRIC, zero=SYMMETRIC.grid.zero_point + 1), "a zero point is not 0"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_stored_weights(case):
    q, why = MISFITS[case]
    found = list(misfits(q))
    assert found
    assert any(why in reason for reason in found), found


@pytest.mark.parametrize("q", [GOOD, SYMMETRIC])
def test_what_the_quantiser_makes_is_legal(q):
    assert list(misfits(q)) == []

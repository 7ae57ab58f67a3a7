"""The words of the text: names, dtypes, other constants and operators, each with one spelling both ways."""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

Operator = Callable[..., Any]

VERSION = "// drawplate text 1"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_SIGNED = re.compile(r"[A-Za-z0-9_.]+")

DTYPES: dict[torch.dtype, str] = {
    torch.bool: "bool",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.uint32: "u32",
    torch.uint64: "u64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e5m2: "f8e5m2",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
DTYPE_NAMED = {name: dtype for dtype, name in DTYPES.items()}

# Constants written as bare words. A device has no index: a program does not say which of two GPUs.
CONSTANTS: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "inf": math.inf,
    "nan": math.nan,
    **DTYPE_NAMED,
    **{str(f).removeprefix("torch."): f for f in (torch.contiguous_format, torch.preserve_format)},
    **{str(f).removeprefix("torch."): f for f in (torch.channels_last, torch.channels_last_3d)},
    "strided": torch.strided,
    **{kind: torch.device(kind) for kind in ("cpu", "cuda", "mps", "meta")},
}

ENUMS = torch.dtype | torch.layout | torch.memory_format | torch.device

# Operators that are Python functions: arithmetic on lengths, and taking one result of several.
_ARITHMETIC = (
    *("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and_", "or_", "not_"),
)
FUNCTIONS: dict[str, Operator] = {
    "getitem": operator.getitem,
    **{f"sym.{name.rstrip('_')}": getattr(operator, name) for name in _ARITHMETIC},
    **{f"sym.{name}": getattr(torch, f"sym_{name}") for name in ("max", "min", "int", "float", "ite", "sum")},
    **{f"sym.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
_FUNCTION_NAMES: dict[Operator, str] = {function: name for name, function in FUNCTIONS.items()}


def quote(name: str) -> str:
    """The name of a program or a fact: bare where it is a word, else as a JSON string.

    >>> print(quote("norms.folded"), quote("model-135m"))
    norms.folded "model-135m"
    """
    return name if _WORD.fullmatch(name) else json.dumps(name)


def signed(sign: str, name: str) -> str:
    """The name of a value (sign %) or of a weight or state tensor (sign @); it may begin with a digit.

    >>> print(signed("@", "0.weight"), signed("%", "a b"))
    @0.weight %"a b"
    """
    return sign + (name if _SIGNED.fullmatch(name) else json.dumps(name))


def operator_name(target: Any) -> str:
    """How the target of a call is written: `aten.linear`, `aten.add.Tensor`, `sym.mul`, `getitem`."""
    if isinstance(target, OpOverload):
        return str(target).removesuffix(".default")
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    return f"python.{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def is_constant(value: Any) -> bool:
    """Can the text write this argument, containers aside, and read it back?"""
    if value is None or type(value) in (bool, int, float, str):
        return True
    return isinstance(value, ENUMS) and value in CONSTANTS.values()


def find_operator(name: str) -> Operator | None:
    """The inverse of operator_name; None if no operator of this name is registered."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    namespace, *rest = name.split(".")
    if len(rest) not in (1, 2):
        return None
    try:
        packet = getattr(getattr(torch.ops, namespace), rest[0])
        found = getattr(packet, rest[1] if len(rest) == 2 else "default")
    except (AttributeError, RuntimeError):
        return None
    return found if isinstance(found, OpOverload) else None


def other_forms(target: Any) -> list[str]:
    """The other overloads of an operator that take a tensor and return a new one.

    >>> other_forms(torch.ops.aten.add.Scalar)
    ['aten.add.Tensor']
    """
    if not isinstance(target, OpOverload):
        return []
    packet = target.overloadpacket
    forms = [getattr(packet, overload) for overload in packet.overloads()]
    return [operator_name(f) for f in forms if f is not target and _makes_tensor(f)]


def _makes_tensor(operator_: OpOverload) -> bool:
    schema = operator_._schema  # noqa: SLF001  (what torch's own tools read)
    return not schema.is_mutable and any(str(a.type) == "Tensor" for a in schema.arguments)


def nearest_operators(name: str, count: int = 3) -> list[str]:
    """Registered operators whose names are like this one: its own overloads first, then by spelling."""
    known = torch._C._dispatch_get_all_op_names()  # noqa: SLF001  (torch has no public list)
    registered = [n.replace("::", ".").removesuffix(".default") for n in known]
    overloads = sorted(n for n in registered if n.startswith(name + "."))
    alike = difflib.get_close_matches(name, sorted({*registered, *FUNCTIONS}), count, 0.7)
    return list(dict.fromkeys(overloads + alike))[:count]

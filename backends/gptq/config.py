"""quantization_config of a GPTQ checkpoint: what is stored how, written for a program and read from a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

from drawplate.backends.gptq.target import BITS
from drawplate.encoding import Encoding
from drawplate.errors import CaptureError

FORMATS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored. group: inputs that share a scale, -1 for all."""

    bits: int
    group: int
    symmetric: bool

    @classmethod
    def of(cls, encoding: Encoding) -> Scheme:
        """Of an encoding with blocks along in alone."""
        return cls(encoding.bits, encoding.block[1], encoding.symmetric)

    def as_json(self) -> dict[str, Any]:
        """GPTQModel's keys."""
        return {"bits": self.bits, "group_size": self.group, "sym": self.symmetric}


def quantization_config(stored: Mapping[str, Scheme], plain: Iterable[str], head: str, version: int) -> dict[str, Any]:
    """stored: of each module. plain: linears that stay floating point. head: the module that gives the logits.

    What most modules have is said once; `dynamic` has the others and, as `-:`, the plain ones, by regular expressions.
    """
    common = Counter(stored.values()).most_common(1)[0][0]
    others = {f"+:{exactly(module)}": s.as_json() for module, s in stored.items() if s != common}
    others |= {f"-:{exactly(module)}": {} for module in plain if module != head}
    name = next(key for key, number in FORMATS.items() if number == version)
    return {
        **common.as_json(),
        "desc_act": False,
        "lm_head": head in stored,
        "quant_method": "gptq",
        "method": "gptq",
        "checkpoint_format": name,
        "format": name,
        "pack_dtype": "int32",
        **({"dynamic": others} if others else {}),
        "meta": {"quantizer": [f"drawplate:{version_of('drawplate')}"]},
    }


def exactly(module: str) -> str:
    """A regular expression that matches this name alone."""
    return f"^{re.escape(module)}$"


@dataclass(frozen=True)
class Stored:
    """A quantization_config that was read. overrides: of `dynamic`, in its order; None: not stored as integers."""

    scheme: Scheme
    version: int
    act_order: bool
    overrides: tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...]
    where: str

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Stored:
        """Raises CaptureError on what is no setting of GPTQ's."""
        if config.get("pack_dtype", "int32") != "int32":
            raise _wrong(f"pack_dtype is {config['pack_dtype']!r}", "integers are read from words of 32 bits", where)
        overrides = tuple((_pattern(key, where), value) for key, value in (config.get("dynamic") or {}).items())
        scheme = _scheme(config, where)
        return cls(scheme, FORMATS[format_of(config)], bool(config.get("desc_act")), overrides, where)

    def of(self, module: str) -> Scheme:
        """How a module is stored: the first entry of `dynamic` that matches its name changes what all have."""
        for pattern, changes in self.overrides:
            if pattern.match(module):
                return _scheme({**self.scheme.as_json(), **changes}, f"{self.where}, dynamic {pattern.pattern!r}")
        return self.scheme


def format_of(config: Mapping[str, Any]) -> str:
    """How the tensors are laid out: GPTQ's first version where nothing is said."""
    return str(config.get("checkpoint_format") or config.get("format") or "gptq")


def _pattern(key: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(key.removeprefix("+:").removeprefix("-:"))
    except re.error as error:
        raise _wrong(f"dynamic {key!r} is no regular expression", str(error), where) from error


def _scheme(config: Mapping[str, Any], where: str) -> Scheme:
    bits, group, symmetric = config.get("bits"), config.get("group_size", 128), config.get("sym", True)
    if bits not in BITS or isinstance(bits, bool):
        raise _wrong(f"bits is {bits!r}", f"GPTQ has {', '.join(map(str, BITS))}", where)
    if type(group) is not int or not (group == -1 or group > 0):
        raise _wrong(f"group_size is {group!r}", "it is a number of inputs, or -1 for all", where)
    if not isinstance(symmetric, bool):
        raise _wrong(f"sym is {symmetric!r}", "it is true or false", where)
    return Scheme(int(bits), group, symmetric)


def _wrong(what: str, why: str, where: str) -> CaptureError:
    fix = "take config.json from where the model is from"
    return CaptureError(f"quantization_config cannot be used: {what}", where=where, why=why, fix=fix)

"""Device: how fast it reads memory and multiplies, measured, with its source. devices/*.toml are shipped.

source = "who measured this, on what, how"
[float]                  # kernels on floating-point weights
read = 47.5e9            # bytes per second from memory
multiply_adds = 56.2e9   # per second
[integer]                # kernels on weights that are stored as integers
read = 40.1e9
multiply_adds = 256e9
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from drawplate.errors import RecipeError
from drawplate.options import nearest, unknown


@dataclass(frozen=True)
class Rates:
    """Of one kind of kernel. read: bytes per second from memory. multiply_adds: per second."""

    read: float
    multiply_adds: float


@dataclass(frozen=True)
class Device:
    """A device by its name. source: who measured the rates, and how. float, integer: rates of the kernels on
    floating-point weights and on weights that are stored as integers."""

    name: str
    source: str
    float: Rates
    integer: Rates

    @classmethod
    def load(cls, source: str | Path) -> Device:
        """A shipped device by its name, or one's own by the path of its .toml file. Raises RecipeError."""
        shipped = devices()
        if str(source) in shipped:
            return cls.from_toml(shipped[str(source)], str(source), where=f"device {source}")
        path = Path(source)
        if path.suffix != ".toml":
            raise unknown(str(source), {"device": shipped}, "device, a shipped name or the path of a .toml file")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fix = "'drawplate calibrate-device --out FILE.toml' measures one"
            raise RecipeError("the device could not be read", where=str(path), why=str(error), fix=fix) from None
        return cls.from_toml(text, path.stem, where=str(path))

    @classmethod
    def from_toml(cls, text: str, name: str, *, where: str) -> Device:
        """Raises RecipeError, which says what is missing, unknown or no rate."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError("the device is not TOML", where=where, why=str(error)) from None
        _only(table, ("source", "float", "integer"), where)
        source = table["source"]
        if not isinstance(source, str) or not source.strip():
            raise RecipeError("a device without a source", where=where, fix='write source = "who measured it, how"')
        return cls(name, source, *(_rates(table[kind], f"{where}: {kind}") for kind in ("float", "integer")))

    def to_toml(self) -> str:
        """For a file: from_toml gives the same device back."""
        return tomli_w.dumps({k: v for k, v in asdict(self).items() if k != "name"})

    def seconds(self, bytes_: int, multiply_adds: int, *, integer: bool) -> float:  # type: ignore[valid-type]
        """What an operator takes: the larger of moving its bytes and of computing."""
        rates = self.integer if integer else self.float
        return max(bytes_ / rates.read, multiply_adds / rates.multiply_adds)


def devices() -> dict[str, str]:
    """The shipped devices: TOML text by name."""
    folder = files("drawplate").joinpath("devices")
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in found}


def _rates(table: Any, where: str) -> Rates:
    if not isinstance(table, Mapping):
        raise RecipeError("rates that are not a table", where=where, fix="write read = .. and multiply_adds = ..")
    _only(table, ("read", "multiply_adds"), where)
    for key, rate in table.items():
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not math.isfinite(rate) or rate <= 0:
            raise RecipeError(f"{key} = {rate!r} is not a rate", where=where, why="it is above 0, per second")
    return Rates(float(table["read"]), float(table["multiply_adds"]))


def _only(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise RecipeError unless these keys are there, and no others."""
    for key in table:
        if key not in keys:
            fix = nearest(key, keys) or f"there are: {', '.join(keys)}"
            raise RecipeError(f"{key!r} is no key of a device", where=where, fix=fix)
    if missing := [key for key in keys if key not in table]:
        raise RecipeError(f"a device without {' and '.join(missing)}", where=where, fix="see devices/*.toml for one")

"""drawplate compiles a language model to a device budget, with proof."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Found from the repository root this folder is also importable as `compiler`, which would make a second
# copy of every class in it: isinstance and registration would then fail in ways that explain nothing.
if __name__ != "drawplate":
    raise ImportError(f"this package is called drawplate; it was imported as {__name__}")

if TYPE_CHECKING:
    from drawplate.api import compile as compile
    from drawplate.api import compress as compress
    from drawplate.api import plan as plan
    from drawplate.artifact import Artifact as Artifact
    from drawplate.backendbase import Backend as Backend
    from drawplate.backendbase import ByteRow as ByteRow
    from drawplate.backendbase import Emission as Emission
    from drawplate.backendbase import Fallback as Fallback
    from drawplate.calibration import Calibration as Calibration
    from drawplate.capture import Assets as Assets
    from drawplate.capture import Captured as Captured
    from drawplate.capture import capture as capture
    from drawplate.encoding import Encoding as Encoding
    from drawplate.encoding import QTensor as QTensor
    from drawplate.errors import BackendError as BackendError
    from drawplate.errors import CaptureError as CaptureError
    from drawplate.errors import DrawplateError as DrawplateError
    from drawplate.errors import OutputError as OutputError
    from drawplate.errors import PassError as PassError
    from drawplate.errors import PluginError as PluginError
    from drawplate.errors import RecipeError as RecipeError
    from drawplate.errors import Refusal as Refusal
    from drawplate.errors import RuntimeMissing as RuntimeMissing
    from drawplate.errors import TextError as TextError
    from drawplate.passbase import Certificate as Certificate
    from drawplate.passbase import Env as Env
    from drawplate.passbase import Fact as Fact
    from drawplate.passbase import Invariant as Invariant
    from drawplate.passbase import Pass as Pass
    from drawplate.planning import Plan as Plan
    from drawplate.plugins.manager import Session as Session
    from drawplate.program import Dim as Dim
    from drawplate.program import Program as Program
    from drawplate.program import Spec as Spec
    from drawplate.recipe import Recipe as Recipe
    from drawplate.runner import Outcome as Outcome
    from drawplate.runner import replay as replay
    from drawplate.runner import run_passes as run_passes
    from drawplate.target import Choice as Choice
    from drawplate.target import Target as Target
    from drawplate.text import parse_program as parse_program
    from drawplate.text import print_program as print_program

# Where each public name lives. Imported when it is first used: torch alone takes seconds, and half of what
# people do with drawplate (help, listing plugins, reading a manifest) does not need it.
_HOMES = {
    "api": ("compile", "compress", "plan"),
    "artifact": ("Artifact",),
    "backendbase": ("Backend", "ByteRow", "Emission", "Fallback"),
    "calibration": ("Calibration",),
    "capture": ("Assets", "Captured", "capture"),
    "encoding": ("Encoding", "QTensor"),
    "errors": (
        *("BackendError", "CaptureError", "DrawplateError", "OutputError", "PassError", "PluginError"),
        *("RecipeError", "Refusal", "RuntimeMissing", "TextError"),
    ),
    "passbase": ("Certificate", "Env", "Fact", "Invariant", "Pass"),
    "planning": ("Plan",),
    "plugins.manager": ("Session",),
    "program": ("Dim", "Program", "Spec"),
    "recipe": ("Recipe",),
    "runner": ("Outcome", "replay", "run_passes"),
    "target": ("Choice", "Target"),
    "text": ("parse_program", "print_program"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'drawplate' has no attribute {name!r}")
    return getattr(import_module(f"drawplate.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

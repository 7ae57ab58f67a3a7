"""The versions of everything that may decide an output."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version


def versions() -> dict[str, str]:
    """drawplate, Python, and every distribution that drawplate depends on, by name."""
    found = {"drawplate": version("drawplate"), "python": platform.python_version()}
    for requirement in requires("drawplate") or []:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement:
            continue  # a tool for developers, or an optional part that reports itself
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return dict(sorted(found.items()))

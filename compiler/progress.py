"""What shows that something is going on; the command line brings a bar, a library call is quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def quiet(items: Iterable[Any], label: str | Callable[[], str]) -> Iterable[Any]:
    """The progress that shows nothing."""
    return items

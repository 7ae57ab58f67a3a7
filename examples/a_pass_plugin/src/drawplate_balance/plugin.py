"""What drawplate finds under the entry point `balance`: one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drawplate.plugins import hookimpl

if TYPE_CHECKING:
    from drawplate.passbase import Pass


@hookimpl
def drawplate_passes() -> list[type[Pass]]:
    """One pass, `balance-gates`."""
    from drawplate_balance.balance_gates import BalanceGates

    return [BalanceGates]

"""Budgets: three ways to say one, what is counted, and the least that would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import captured

from drawplate.allocation import Item, Option
from drawplate.analysis.sites import sites
from drawplate.backends.xnnpack.target import TARGET
from drawplate.budget import Account, Budget, no_time
from drawplate.calibration import Calibration
from drawplate.device import Device, Rates
from drawplate.errors import PassError, RecipeError
from drawplate.passbase import Env
from drawplate.passes.add_kv_cache import AddKvCache
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.passes.merge_linears import MergeLinears
from drawplate.passes.quantize_activations import QuantizeActivations
from drawplate.program import Program
from drawplate.rehearsal import rehearse
from drawplate.roofline import seconds
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (32, 32), generator=torch.Generator().manual_seed(0)), "random")
CONTEXT = 48
DEVICE = Device("test", "this test", Rates(1e8, 1e12), Rates(1e8, 1e12))


@pytest.fixture
def device(tmp_path: Any) -> str:
    path = tmp_path / "test.toml"
    path.write_text(DEVICE.to_toml())
    return str(path)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("90MB", 90e6, "bytes"), ("4.25bpw", 4.25, "bits"), ("12 ms/token", 12e6, "time"), ("0.5ms/token", 5e5, "time")],
)
def test_three_ways_to_say_one(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(text, amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["much", "12ms", "12 s/token", "-1ms/token", "4 bits"])
def test_what_is_none_is_told_with_the_three(text: str) -> None:
    with pytest.raises(RecipeError) as error:
        Budget.parse(text)
    wanted = f"{text!r} is neither bytes (90MB), nor bits per weight (4.25bpw), nor time (12ms/token)"
    assert error.value.what == wanted


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_time_of_what_is_stored_and_of_what_is_around_is_the_program_s(name: str) -> None:
    program = captured(name)
    found = sites(program)
    account = Account.of(Budget.parse("1ms/token"), program, found, TARGET, DEVICE, CONTEXT)
    whole = account.around + sum(account.time(s, None) for s in found)
    assert whole == pytest.approx(1e9 * seconds(program, DEVICE, context=CONTEXT), abs=len(found) + 1)
    assert account.around > 0


def milliseconds(program: Program) -> float:
    """Per token with the cache full, of the program as it will run."""
    return 1e3 * seconds(AddKvCache(CONTEXT).run(program, Env()), DEVICE)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_comes_out_takes_the_time_that_was_given(name: str, share: float, device: str) -> None:
    program, env = captured(name), Env(calibration=TEXT, target=TARGET)
    least, most = least_time(program, device), milliseconds(program)
    budget = least + share * (most - least)
    passes = [AllocateBits(f"{budget:.6f}ms/token", device=device, context=CONTEXT), QuantizeActivations()]
    outcome = run_passes(program, [*passes, MergeLinears()], env)
    found = milliseconds(outcome.program)
    assert 0.93 * budget < found <= budget
    assert f"of {budget:.6f}".rstrip("0")[:8] in outcome.told[0]
    assert "ms per token" in outcome.told[0]


def least_time(program: Program, device: str) -> float:
    """As the error names it."""
    with pytest.raises(PassError, match="cannot be met") as error:
        run_passes(program, [AllocateBits("0.0001ms/token", device=device, context=CONTEXT)], ENV)
    return float(error.value.fix.split("budget=")[1].split("ms")[0])


ENV = Env(calibration=TEXT, target=TARGET)


def test_the_least_time_that_is_named_is_enough(device: str) -> None:
    program = captured("llama")
    least = least_time(program, device)
    enough = AllocateBits(f"{least}ms/token", device=device, context=CONTEXT)
    found = run_passes(program, [enough], ENV).program
    assert milliseconds(found) <= least


def test_a_longer_context_leaves_less_for_weights(device: str) -> None:
    program = captured("llama")
    budget = f"{0.6 * milliseconds(program):.5f}ms/token"
    short, long = (
        rehearse(program, [AllocateBits(budget, device=device, context=c)], Env(target=TARGET)).program
        for c in (8, CONTEXT)
    )
    assert short is not None
    assert long is not None
    assert sum(w.nbytes for w in long.weights.values()) < sum(w.nbytes for w in short.weights.values())


def test_time_needs_a_device() -> None:
    with pytest.raises(ValueError, match="is time on a device: name it, as in device=oneplus-12"):
        AllocateBits("12ms/token")
    with pytest.raises(PassError, match="no device is called 'oneplus'"):
        rehearse(captured("llama"), [AllocateBits("12ms/token", device="oneplus")], Env(target=TARGET))
    with pytest.raises(RecipeError, match="no device is called 'oneplus'"):
        AllocateBits("12ms/token", device="oneplus").check_env(Env(calibration=TEXT))


LARGE, SMALL = (Option(100, 1.0, nanoseconds=100), Option(180, 0.1, nanoseconds=180)), (Option(10, 0.5),)


def spent(budget: str, around: int = 0) -> str:
    """What is told of a large and a small weight under a budget."""
    account, items = Account(Budget.parse(budget), 100, around, no_time), [Item("a", LARGE), Item("b", SMALL)]
    return account.told(items, account.spend(items))


def test_what_the_menu_s_steps_leave_is_told_with_what_the_next_one_takes() -> None:
    left = "(17.5 % is left: the next step up, a, takes 80 bytes more)"
    assert spent("160B", around=22) == f"110 of 138 bytes, 8.800 bits per weight {left}"
    assert spent("14.4bpw") == f"110 of 180 bytes, 8.800 bits per weight {left.replace('17.5', '38.9')}"
    assert spent("0.00014ms/token") == (
        "0.000 of 0.00014 ms per token, 110 bytes, 8.800 bits per weight "
        "(28.6 % is left: the next step up, a, takes 8e-05 ms more)"
    )
    assert spent("220B", around=20) == (
        "190 of 200 bytes, 15.200 bits per weight (4.5 % is left: every weight is the best that the menu has)"
    )


def test_a_budget_within_1_percent_needs_no_reason() -> None:
    assert spent("111B") == "110 of 111 bytes, 8.800 bits per weight"

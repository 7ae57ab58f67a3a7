"""Devices: shipped and one's own, to TOML and back, and what is wrong with one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawplate.device import Device, Rates, devices
from drawplate.errors import RecipeError

MINE = Device("mine", "this test", Rates(2e9, 3e9), Rates(1e9, 8e9))


@pytest.mark.parametrize("name", devices())
def test_what_is_shipped_loads_and_names_its_source(name: str) -> None:
    device = Device.load(name)
    assert device.name == name
    assert len(device.source) > 40


def test_a_file_gives_the_device_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.to_toml())
    assert Device.load(path) == Device.load(str(path)) == MINE


def test_an_operator_takes_the_larger_of_its_bytes_and_its_products() -> None:
    assert MINE.seconds(4, 3, integer=False) == pytest.approx(2e-9)
    assert MINE.seconds(1, 30, integer=False) == pytest.approx(10e-9)
    assert MINE.seconds(4, 3, integer=True) == pytest.approx(4e-9)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RecipeError) as error:
        Device.load("oneplus12")
    assert str(error.value) == (
        "no device is called 'oneplus12'\n"
        "  where: device, a shipped name or the path of a .toml file\n"
        "  do:    did you mean 'oneplus-12'?"
    )


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('source = "this test"', "", "a device without source"),
        ('source = "this test"', 'source = " "', "a device without a source"),
        ("read = 2000000000.0", "", "a device without read"),
        ("read = 2000000000.0", "read = 0", "read = 0 is not a rate"),
        ("read = 2000000000.0", "read = true", "read = True is not a rate"),
        ("read = 2000000000.0", "read = inf", "read = inf is not a rate"),
        ("[float]", "[floats]", "'floats' is no key of a device"),
        ("[float]", "[float", "the device is not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = MINE.to_toml()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as error:
        Device.load(path)
    assert error.value.what == what
    assert error.value.where.startswith(str(path))


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the device could not be read") as error:
        Device.load(tmp_path / "none.toml")
    assert "calibrate-device" in error.value.fix

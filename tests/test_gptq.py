"""gptq: equal to plain rounding where nothing is correlated, better in the output where it is."""

from __future__ import annotations

import pytest
import torch

from drawplate.encoding import Encoding, encode
from drawplate.errors import DrawplateError
from drawplate.gptq import Settings, gptq, output_error

ENCODINGS = (
    "i4 block 1x16 sym scale f32",
    "i3 block 1x-1 sym scale bf16",
    "i2 block 1x32 asym scale f16",
    "i8 block 1x64 asym scale f32",
    "i3 block 1x24 ragged asym scale f16",
)


def weight_and_rows(rows: int = 24, columns: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns] and correlated inputs [512, columns], some channels much larger than others."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    rows_read = torch.randn(512, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), rows_read


@pytest.mark.parametrize("text", ENCODINGS)
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("act_order", [False, True])
def test_uncorrelated_inputs_give_plain_rounding(text: str, method: str, act_order: bool) -> None:
    encoding, (weight, _) = Encoding.parse(text), weight_and_rows()
    plain = encode(weight, encoding, method=method)  # type: ignore[arg-type]
    settings = Settings(act_order=act_order, range=method)  # type: ignore[arg-type]
    found = gptq(weight, 3 * torch.eye(64), encoding, settings)
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.grid.scale, plain.grid.scale)
    assert torch.equal(found.grid.zero_point, plain.grid.zero_point)


@pytest.mark.parametrize("text", ENCODINGS)
@pytest.mark.parametrize("act_order", [False, True])
def test_correlated_inputs_give_less_error_in_the_output(text: str, act_order: bool) -> None:
    encoding, (weight, rows) = Encoding.parse(text), weight_and_rows()
    moments = rows.T @ rows
    plain = output_error(weight, encode(weight, encoding).dequantize(), moments)
    stored = gptq(weight, moments, encoding, Settings(act_order=act_order))
    found = output_error(weight, stored.dequantize(), moments)
    assert found < 0.7 * plain
    exact = ((weight - stored.dequantize()) @ rows.T).square().sum() / (weight @ rows.T).square().sum()
    assert found == pytest.approx(float(exact), rel=1e-3)


@pytest.mark.parametrize("text", ENCODINGS[:3])
def test_what_is_read_most_comes_first_and_is_stored_better(text: str) -> None:
    """Where large channels stand last, their errors have no columns left that make up for them."""
    encoding, (weight, rows) = Encoding.parse(text), weight_and_rows()
    moments = (rows.T @ rows).flip(0, 1)
    plain, ordered = (gptq(weight, moments, encoding, Settings(act_order=o)).dequantize() for o in (False, True))
    assert output_error(weight, ordered, moments) < 0.8 * output_error(weight, plain, moments)


def test_the_weight_and_the_moments_are_left_alone() -> None:
    weight, rows = weight_and_rows()
    moments = rows.T @ rows
    kept = weight.clone(), moments.clone()
    gptq(weight, moments, Encoding.parse(ENCODINGS[0]), Settings())
    assert torch.equal(weight, kept[0])
    assert torch.equal(moments, kept[1])


def test_a_channel_that_is_never_on_does_not_matter() -> None:
    weight, rows = weight_and_rows()
    rows[:, 5] = 0
    stored = gptq(weight, rows.T @ rows, Encoding.parse(ENCODINGS[0]), Settings())
    assert torch.isfinite(stored.dequantize()).all()
    assert output_error(weight, stored.dequantize(), rows.T @ rows) < 0.01


def test_rows_that_share_a_scale_and_moments_that_are_not_finite_are_refused() -> None:
    weight, rows = weight_and_rows()
    with pytest.raises(DrawplateError, match="rows with scales of their own"):
        gptq(weight, rows.T @ rows, Encoding.parse("i4 block -1x-1 sym scale f32"), Settings())
    with pytest.raises(DrawplateError, match="inf or nan on the calibration text"):
        gptq(weight, torch.full((64, 64), torch.nan), Encoding.parse(ENCODINGS[0]), Settings())

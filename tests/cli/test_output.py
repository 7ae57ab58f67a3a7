"""What a person sees while a command runs."""

from __future__ import annotations

import io
import re
import sys

import pytest

from drawplate.commands.output import Output
from drawplate.learning.descent import Told


def test_a_training_s_bar_has_its_loss_its_rate_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    told = Told("train-blocks")
    told.part = "layers.3"
    with Output() as out:
        for step in out.progress(range(4), told):
            told.step(step, 0.12345, 0.002)
            out._shared_bars().refresh()
    assert "train-blocks, layers.3, loss 0.1235, rate 0.002" in shown.getvalue()
    assert re.search(r"3/4 \d:\d\d:\d\d \d:\d\d:\d\d", re.sub(r"\x1b\[\d*m", "", shown.getvalue()))

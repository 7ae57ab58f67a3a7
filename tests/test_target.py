"""What a target says by itself, before a backend looks at the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowkit import Plain, kit_session, mlp

import drawplate
from drawplate.backends.xnnpack.backend import XnnpackBackend
from drawplate.capture import Assets, Captured
from drawplate.errors import BackendError
from drawplate.program import Program

WHY = "down (drawplate.hadamard): nothing in plain turns activations while the model runs"


def turning() -> Program:
    """Two linears, and a rotation in front of the second that is computed as the model runs."""
    editor = mlp().edit()
    _, down = editor.nodes(torch.ops.aten.linear.default)
    with editor.graph.inserting_before(down):
        turned = editor.call(torch.ops.drawplate.hadamard.default, down.args[0], 128, like=down)
    down.args = (turned, *down.args[1:])
    return editor.finish()


def test_a_target_that_turns_nothing_refuses_rotations() -> None:
    (refusal,) = Plain().refusals(turning())
    assert str(refusal) == f"{WHY}; leave r3 and r4 out of rotate: the other rotations are in the weights"
    assert Plain().refusals(mlp()) == []
    assert XnnpackBackend().refusals(turning()) == []


def test_a_compile_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with pytest.raises(BackendError) as error:
        drawplate.compile(
            Captured(turning(), Assets()), "scale-weights -> plain", out=tmp_path / "out", session=kit_session()
        )
    assert error.value.what == "backend 'plain' cannot hold this program"
    assert WHY in error.value.why
    assert not (tmp_path / "out").exists()

"""Two processes that compile together find what one finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_kit import CASES, results
from safetensors.torch import load_file

from drawplate.errors import DrawplateError
from drawplate.metrics import FILE
from drawplate.ranks import joined, leads, share, total

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_one_process_alone_shares_nothing() -> None:
    assert leads()
    assert share([1, 2, 3]) == [1, 2, 3]
    assert total(0.5) == 0.5


def test_what_torchrun_did_not_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert leads()
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DrawplateError) as error, joined():
        pass
    assert error.value.what == "the other processes cannot be found"
    assert error.value.fix == "start it by torchrun, or unset WORLD_SIZE"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks_kit.py")
    done = subprocess.run([*TORCHRUN, script, out], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_what_two_store_is_what_one_stores(both: Path) -> None:
    alone, together = results(), load_file(both / "weights.safetensors")
    assert alone.keys() == together.keys()
    for case in CASES:
        ours, theirs = (
            torch.cat([w[n].double().flatten() for n in alone if n.startswith(case)]) for w in (alone, together)
        )
        assert (ours - theirs).norm() < 1e-5 * ours.norm(), case


def test_one_of_them_writes(both: Path) -> None:
    lines = [json.loads(line) for line in (both / FILE).read_text().splitlines()]
    places = [(x["pass"], x["run"], x["part"], x["step"], "held" in x) for x in lines]
    assert len(places) == len(set(places))
    assert {"train-scales", "train-blocks", "train-weights", "rotate"} == {x["pass"] for x in lines}

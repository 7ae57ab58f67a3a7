"""Run by test_ranks.py under torchrun: what some passes store, into the file that is named."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from architectures import captured
from safetensors.torch import save_file
from torch import Tensor

from drawplate.calibration import Calibration
from drawplate.encoding import as_read
from drawplate.passbase import Env, Pass
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.rotate import Rotate
from drawplate.passes.train_blocks import TrainBlocks
from drawplate.passes.train_scales import TrainScales
from drawplate.passes.train_weights import TrainWeights
from drawplate.ranks import joined, leads
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (7, 12), generator=torch.Generator().manual_seed(1)), "random")
GPTQ = QuantizeWeights(bits=3, block=(1, 16), method="gptq", tokens=84)
CASES: dict[str, tuple[Pass, ...]] = {
    "gptq": (GPTQ,),
    "scales": (GPTQ, TrainScales(epochs=2, batch=3, held=1)),
    "blocks": (TrainBlocks(bits=3, block=(1, 16), epochs=2, held=1),),
    "weights": (TrainWeights(bits=4, block=(1, 16), batch=1, held=1, rank=4),),
    "rotations": (FoldNorms(), Rotate(kind="cayley", steps=2, tokens=84, batch=2)),
}


def results(metrics: Path | None = None) -> dict[str, Tensor]:
    """Every weight of every case, as it reads back."""
    found = {}
    for case, passes in CASES.items():
        program = run_passes(captured("llama"), passes, Env(calibration=TEXT, metrics=metrics)).program
        found |= {f"{case}/{name}": as_read(w).contiguous() for name, w in program.weights.items()}
    return found


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with joined():
        stored = results(out)
        if leads():
            save_file({name: w.clone() for name, w in stored.items()}, out / "weights.safetensors")

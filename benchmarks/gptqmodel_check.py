"""Does GPTQModel compute from our checkpoint what our Program computes? Logits on one text, position by position.

GPTQModel wants packages of its own, so it runs in an environment of its own. The first time:

    python benchmarks/gptqmodel_check.py FOLDER --install build/gptqmodel

makes one there (pip, some gigabytes with its own torch) and keeps it. Or name an interpreter that has it:

    python benchmarks/gptqmodel_check.py FOLDER --python OTHER/bin/python

FOLDER is what the gptq backend wrote, or any GPTQ folder. GPTQModel's portable CPU kernel computes in float16, ours in
float32, so a few thousandths are expected.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drawplate.capture import capture
from drawplate.parity import distance
from drawplate.probing import run
from drawplate.tokens import Tokenizer

THEIRS = """
import sys, torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file, save_file
folder, asked, answer = sys.argv[1:]
model = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
with torch.no_grad():
    logits = model.model(input_ids=load_file(asked)["ids"]).logits
save_file({"logits": logits.float().contiguous()}, answer)
"""
TEXT = (
    "The Danube is the second-longest river in Europe. It rises in the Black Forest and flows south-east for almost "
    "three thousand kilometres, through ten countries, before it reaches the Black Sea."
)


def main() -> None:
    """Print how far the two are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--install", type=Path, metavar="FOLDER", help="make an environment here, unless it is there")
    where.add_argument("--python", type=Path, help="an interpreter that has gptqmodel")
    arguments = parser.parse_args()
    print(compared(arguments.folder, arguments.python or environment(arguments.install)))


def environment(folder: Path) -> Path:
    """The interpreter of an environment with GPTQModel."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "gptqmodel"]
        subprocess.run(install, check=True, env={**os.environ, "BUILD_CUDA_EXT": "0"})
    return python


def compared(folder: Path, python: Path) -> str:
    """One line: both on the same ids."""
    program = capture(folder).program
    ids = _ids(folder)
    positions = torch.arange(ids.shape[1])[None]
    ours = run(program, (ids, positions), dtype=torch.float32)[0][0]
    with tempfile.TemporaryDirectory(prefix="drawplate-") as aside:
        asked, answer = Path(aside, "ids.safetensors"), Path(aside, "logits.safetensors")
        save_file({"ids": ids}, asked)
        bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        bare["TORCHDYNAMO_DISABLE"] = "1"  # it would compile its kernel first, for minutes
        command = [str(python), "-c", THEIRS, str(folder.resolve()), str(asked), str(answer)]
        subprocess.run(command, check=True, env=bare, stdout=subprocess.DEVNULL)
        theirs = load_file(answer)["logits"][0]
    found = distance([(theirs, ours)])
    return (
        f"{folder.name}: {found.positions} positions, logits differ by {found.relative_median:.2g} (median) and "
        f"{found.relative_max:.2g} (most), KL {found.kl_mean:.2g} nats, same top token {found.agreement:.1%}"
    )


def _ids(folder: Path) -> Tensor:
    """int64 [1, n]: the text, or counted where the folder has no tokenizer."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(folder)
        return torch.tensor([[*tokenizer.prefix, *tokenizer.encode(TEXT)]])
    return torch.arange(48)[None]


if __name__ == "__main__":
    main()

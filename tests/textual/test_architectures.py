"""The text of real models' programs: it reads back, it is legal, it is the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from architectures import DECODERS, captured, captured_convnet

from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.spec import check
from drawplate.testing import text_reasons

from fetch_data import ROOT

MINILM = ROOT / "minilm"

PRINT = "import sys; from architectures import captured; [print(captured(name)) for name in sys.argv[1:]]"
SAMPLE = ("llama", "gemma2")  # each is captured once more, in another process


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_reads_back_and_is_legal(name):
    assert text_reasons(captured(name)) == []
    assert check(captured(name), "canonical") == []


def test_a_convolutional_network_reads_back_and_is_legal():
    assert text_reasons(captured_convnet()) == []
    assert check(captured_convnet(), "canonical") == []


@pytest.mark.skipif(not MINILM.is_dir(), reason="scripts/fetch_data.py was not run")
def test_an_encoder_reads_back_and_is_legal():
    """A real one, with a mask for an input: as captured and in canonical form."""
    program = capture(MINILM).program
    canonical = canonicalise(program)
    assert text_reasons(program) == []
    assert text_reasons(canonical) == []
    assert check(canonical, "canonical") == []


def test_another_process_prints_the_same():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRINT, *SAMPLE],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "".join(f"{captured(name)}\n" for name in SAMPLE)

"""A decoder of one layer with random weights, plain and cached, and a tokenizer of bytes."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from drawplate.isolate import Subject
from drawplate.text import parse_program
from drawplate.tokens import Tokenizer

HEAD = """
  weight @embed.weight : f32[258, 16] = seed(0)
  weight @place.weight : f32[64, 16] = seed(1)
  weight @norm.weight : f32[16] = seed(2)
  weight @q.weight : f32[16, 16] = seed(3)
  weight @k.weight : f32[8, 16] = seed(4)
  weight @v.weight : f32[8, 16] = seed(5)
  weight @o.weight : f32[16, 16] = seed(6)
"""

PLAIN = """// drawplate text 1
program tiny(%input_ids: i64[b, s], %position_ids: i64[b, s]) where 1 <= b <= 64, 1 <= s <= 64 {
HEAD
  %0 : f32[b, s, 16] = aten.embedding(@embed.weight, %input_ids)
  %1 : f32[b, s, 16] = aten.embedding(@place.weight, %position_ids)
  %2 : f32[b, s, 16] = aten.add.Tensor(%0, %1)
  %3 : f32[b, s, 16] = aten.rms_norm(%2, [16], @norm.weight, 1e-05)
  %4 : f32[b, s, 16] = aten.linear(%3, @q.weight)
  %5 : f32[b, s, 8] = aten.linear(%3, @k.weight)
  %6 : f32[b, s, 8] = aten.linear(%3, @v.weight)
  %7 : f32[b, s, 2, 8] = aten.unflatten.int(%4, 2, [2, 8])
  %8 : f32[b, s, 1, 8] = aten.unflatten.int(%5, 2, [1, 8])
  %9 : f32[b, s, 1, 8] = aten.unflatten.int(%6, 2, [1, 8])
  %10 : f32[b, 2, s, 8] = aten.transpose.int(%7, 1, 2)
  %11 : f32[b, 1, s, 8] = aten.transpose.int(%8, 1, 2)
  %12 : f32[b, 1, s, 8] = aten.transpose.int(%9, 1, 2)
  %13 : f32[b, 2, s, 8] = ATTENTION
  %14 : f32[b, s, 2, 8] = aten.transpose.int(%13, 1, 2)
  %15 : f32[b, s, 16] = aten.flatten.using_ints(%14, 2, 3)
  %16 : f32[b, s, 16] = aten.linear(%15, @o.weight)
  %17 : f32[b, s, 16] = aten.add.Tensor(%2, %16)
LAST
}"""
SDPA = "aten.scaled_dot_product_attention(%10, %11, %12, None, 0.0, True, scale=0.35355339059327373, enable_gqa=True)"
CACHE = "drawplate.cached_attention(%10, %11, %12, @cache.0.key, @cache.0.value, %input_pos, 0.35355339059327373)"
LOGITS = """
  %18 : f32[b, s, 258] = aten.linear(%17, @embed.weight)
  %19 : f32[b, s, 258] = aten.div.Tensor(%18, 0.5)
  %20 : f32[b, s, 258] = aten.tanh(%19)
  %21 : f32[b, s, 258] = aten.mul.Tensor(%20, 8)
  return %21"""
LAST_LOGITS = """
  %18 : f32[1, 1, 16] = drawplate.last_position(%17)
  %19 : f32[1, 1, 258] = aten.linear(%18, @embed.weight)
  %20 : f32[1, 1, 258] = aten.div.Tensor(%19, 0.5)
  %21 : f32[1, 1, 258] = aten.tanh(%20)
  %22 : f32[1, 1, 258] = aten.mul.Tensor(%21, 8)
  return %22"""


def plain_text(seed: int = 0) -> str:
    """seed: of the output projection, so that two models can differ."""
    text = PLAIN.replace("HEAD", HEAD).replace("ATTENTION", SDPA).replace("LAST", LOGITS)
    return text.replace("seed(6)", f"seed({6 + seed})")


def cached_text(context: int = 64, *, last: bool = False, seed: int = 0) -> str:
    text = plain_text(seed).replace(SDPA, CACHE)
    text = text.replace("%input_ids: i64[b, s], %position_ids: i64[b, s]", "%tokens: i64[1, s], %input_pos: i64[s]")
    text = text.replace("1 <= b <= 64, ", "").replace("[b, ", "[1, ").replace("%input_ids", "%tokens")
    text = text.replace("f32[1, s, 16] = aten.embedding(@place", "f32[s, 16] = aten.embedding(@place")
    text = text.replace("@place.weight, %position_ids", "@place.weight, %input_pos")
    state = "".join(f"  state @cache.0.{kind} : f32[1, {context}, 1, 8]\n" for kind in ("key", "value"))
    text = text.replace("  %0 :", state + "  %0 :", 1)
    return text.replace(LOGITS.replace("[b, ", "[1, "), LAST_LOGITS) if last else text


OPENER = '''
from pathlib import Path
from drawplate.runtime import ProgramRunner
from drawplate.text import parse_program

def open_text(folder: Path, threads=None):
    return ProgramRunner(parse_program((folder / "program.txt").read_text()), threads)

class Turned(ProgramRunner):
    """Fed several tokens at once, it takes each token for the one before."""

    def step(self, ids):
        logits = super().step(ids)
        return logits.roll(1, -1) if len(ids) > 1 else logits

def open_turned(folder: Path):
    return Turned(parse_program((folder / "program.txt").read_text()))

def fail(folder: Path):
    raise ValueError("no such kernel: drawplate.unknown")
'''


@pytest.fixture
def texts():
    """texts(context, last=, seed=): the cached program as text."""
    return cached_text


@pytest.fixture
def plain():
    return parse_program(plain_text())


@pytest.fixture
def other():
    """As `plain` with one other weight."""
    return parse_program(plain_text(seed=1))


@pytest.fixture
def cached():
    return parse_program(cached_text())


@pytest.fixture
def last():
    """Cached, with the head on the last position only."""
    return parse_program(cached_text(last=True))


@pytest.fixture
def subject(tmp_path):
    """A program's text as an artifact that a child process can open: subject(text, name, opener)."""

    def make(text: str, name: str = "tiny", opener: str = "open_text") -> Subject:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "program.txt").write_text(text)
        script = tmp_path / "opening.py"
        script.write_text(OPENER)
        return Subject(name, folder, f"{script}:{opener}")

    return make


def byte_tokenizer(folder: Path, prefix: bool = False) -> Tokenizer:
    """Ids 0 to 255 are bytes, 256 is <bos>, 257 is <eos>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    if prefix:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.fixture
def tokenizer(tmp_path):
    return byte_tokenizer(tmp_path)


@pytest.fixture
def prefixing(tmp_path):
    """A tokenizer that puts <bos> in front of every text."""
    folder = tmp_path / "prefixing"
    folder.mkdir()
    return byte_tokenizer(folder, prefix=True)

"""errors/<case>.txt: a text that is wrong, and what the user reads."""

from pathlib import Path

import pytest

from drawplate.errors import TextError
from drawplate.testing import read_golden
from drawplate.text import parse_program

CASES = sorted((Path(__file__).parent / "errors").glob("*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_error(path, golden):
    text, _ = read_golden(path)
    with pytest.raises(TextError) as caught:
        parse_program(text)
    golden(path, str(caught.value))


def test_the_empty_text():
    with pytest.raises(TextError, match="expected the line '// drawplate text 1'"):
        parse_program("")


def test_a_failed_operator_is_not_logged_too(caplog, capfd):
    text = "// drawplate text 1\nprogram m(%x: f32[4]) {\n  %0 = aten.mm(%x, %x)\n  return %0\n}"
    with pytest.raises(TextError):
        parse_program(text)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")

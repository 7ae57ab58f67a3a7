"""Every file of golden/<pass>/<case>.txt: a program, a recipe's passes, and what comes out of them."""

from pathlib import Path

import pytest

from drawplate.plugins.manager import Session
from drawplate.testing import check_golden

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(FOLDER.glob("*/*.txt"))


@pytest.fixture(scope="module")
def session():
    return Session(environment={"DRAWPLATE_PLUGINS": ""})


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path, session, update_golden):
    check_golden(path, session, update=update_golden)


def test_every_pass_has_a_golden_case(session):
    missing = sorted(session.passes.keys() - {p.parent.name for p in CASES})
    assert not missing, f"write golden/<pass>/<case>.txt for {', '.join(missing)}"

"""What all tests share: golden files and their option."""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what came into the golden files that differ; those tests still fail, so look and run again",
    )


@pytest.fixture
def update_golden(request) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def golden(update_golden) -> Callable[[Path, str], None]:
    """golden(path, actual) holds a text against the last section of a golden file."""
    from drawplate.testing import compare_golden

    return lambda path, actual: compare_golden(path, actual, update=update_golden)

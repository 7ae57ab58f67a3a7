"""One small artifact and its explanation, which most tests look at."""

from __future__ import annotations

import pytest

from drawplate.artifact import Artifact
from drawplate.explain.report import Explanation
from drawplate.explain.twins import Twins
from tests.explain.explainkit import artifact, explained, pair


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """In 4 bits, its tied vocabulary in 8, activations in 8."""
    return artifact(tmp_path_factory.mktemp("artifacts") / "rounded")


@pytest.fixture(scope="session")
def found(made: Artifact) -> Explanation:
    """Every weight measured."""
    return explained(made)


@pytest.fixture(scope="session")
def programs(made: Artifact) -> Twins:
    """Before and after storing."""
    return pair(made)

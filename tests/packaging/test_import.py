"""What happens on import, each case in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("compiler", "passes", "backends", "plugins")
PACKAGES = [
    ".".join(init.parent.relative_to(ROOT).parts) for top in TOPS for init in sorted((ROOT / top).rglob("__init__.py"))
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_folder_cannot_be_imported_by_its_path(name):
    """It would work from the repository root, and make a second copy of every class."""
    done = python(f"import {name}")
    top = name.partition(".")[0]
    assert f"ImportError: this package is called drawplate{'' if top == 'compiler' else '.' + top}" in done.stderr


def test_ruff_refuses_it_too():
    code = "".join(f"import {top}\nfrom {top} import anything\n" for top in TOPS)
    command = [
        Path(sys.executable).with_name("ruff"),
        "check",
        "--select=TID251",
        "--output-format=concise",
        "-",
    ]
    done = subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("TID251") == 2 * len(TOPS)


def test_importing_the_package_is_cheap():
    """`drawplate --help` and plugin listing must not wait for torch."""
    done = python("import sys, drawplate; print({'torch', 'transformers', 'executorch'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr

"""The rules of the house that can be read off the source, without importing any of it."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PYPROJECT["tool"]["setuptools"]["package-dir"]  # {"drawplate": "compiler", ...}

MAY_NOT_IMPORT = {
    "compiler": ("drawplate.passes", "drawplate.backends"),
    "passes": ("drawplate.backends", "drawplate.plugins"),
    "backends": ("drawplate.passes", "drawplate.plugins"),
    "plugins": (),
}

FAMILIES = re.compile(
    r"llama|qwen|gemma|mi[sx]tral|falcon|deepseek|smollm|granite|olmo|mamba|phi-?\d|phi-|gpt[-_]?(neo|j\b|2|oss)|bert"
    r"|cohere(?!n)|stablelm|neox",
    re.IGNORECASE,
)
NAMED = {
    "compiler/recipes/meta-8da4w.toml": "the scheme was published for these models, and is known by their name",
    "compiler/devices/oneplus-12.toml": "its rates are of published files, which the source must name",
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def where(file: Path, node: ast.AST | None = None) -> str:
    return f"{file.relative_to(ROOT)}" + (f":{node.lineno}" if node else "")  # type: ignore[attr-defined]


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every module, or name in a module, that is imported: also inside functions and type-checking blocks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("folder", MAY_NOT_IMPORT)
def test_imports_point_one_way(folder):
    """passes and backends import the core, never each other; built-ins reach the core as plugins only."""
    wrong = [
        f"{where(file, node)} imports {name}"
        for file in sources(folder)
        for node, name in imports(ast.parse(file.read_text()))
        if f"{name}.".startswith(tuple(f"{banned}." for banned in MAY_NOT_IMPORT[folder]))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_architecture_decides_anything():
    """Structure is found on the graph. A model family may be named in comments and docstrings only."""
    wrong = [
        f"{where(file, node)}: {text!r}"
        for file in sources("compiler", "passes")
        for node, text in words(ast.parse(file.read_text()))
        if FAMILIES.search(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_architecture_is_even_named():
    """Nor in a comment, but where NAMED says why."""
    files = [f for folder in ("compiler", "passes") for kind in ("*.py", "*.toml") for f in (ROOT / folder).rglob(kind)]
    found = {where(file): line for file in files for line in file.read_text().splitlines() if FAMILIES.search(line)}
    assert found.keys() == NAMED.keys(), "\n".join(f"{name}: {line}" for name, line in found.items())


def words(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The strings and identifiers that code can act on; strings that stand alone are documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                yield node, text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.FunctionDef(name=text) | ast.arg(arg=text):
                yield node, text
    yield from imports(tree)


def test_every_package_on_disk_is_listed():
    """setuptools leaves an unlisted package out of the wheel without a word."""
    found = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(found) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package():
    missing = {where(file.parent) for file in sources(*FOLDERS.values()) if not (file.parent / "__init__.py").exists()}
    assert not missing


def test_constraints_pin_every_dependency():
    pins = dict(line.replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    project = PYPROJECT["project"]
    needed = map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"])
    assert not [str(need) for need in needed if not need.specifier.contains(pins.get(need.name, "0"))]

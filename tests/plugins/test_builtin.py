"""Whatever lies in passes/, backends/ and recipes/ is registered, under the name of its file."""

import subprocess
import sys
from pathlib import Path

import pytest

import drawplate.backends
import drawplate.passes
from drawplate.plugins.manager import Session
from drawplate.recipe import Recipe

SESSION = Session(environment={"DRAWPLATE_PLUGINS": ""})


def test_each_file_of_passes_is_one_pass_of_its_name() -> None:
    modules = {name: pass_.__module__ for name, pass_ in SESSION.passes.items()}
    files = Path(drawplate.passes.__path__[0]).glob("[!_]*.py")
    assert modules.keys() == {p.stem.replace("_", "-") for p in files}
    assert modules == {name: f"drawplate.passes.{name.replace('-', '_')}" for name in modules}


def test_each_folder_of_backends_is_one_backend_of_its_name() -> None:
    folders = {p.parent.name for p in Path(drawplate.backends.__path__[0]).glob("*/__init__.py")}
    assert SESSION.backends.keys() == folders


@pytest.mark.parametrize("name", SESSION.recipes)
def test_each_preset_parses_and_says_what_it_is_for(name: str) -> None:
    recipe = Recipe.load(name, SESSION)
    assert recipe.name == name
    assert recipe.description
    recipe.make_backend(SESSION)
    assert Recipe.from_toml(recipe.to_toml(), SESSION) == recipe


def test_listing_imports_no_vendor_sdk() -> None:
    code = (
        "import sys; from drawplate.plugins.manager import Session\n"
        "s = Session(environment={'DRAWPLATE_PLUGINS': ''}); s.problems, [b.target for b in s.backends.values()]\n"
        "heavy = {'executorch', 'onnx', 'qai_hub', 'gguf', 'transformers'}\n"
        "print(sorted(heavy & {m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipes_alone_do_not_import_torch() -> None:
    code = "import sys; from drawplate.plugins.manager import Session; Session().recipes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

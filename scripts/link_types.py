"""Show type checkers the package as it is imported: links in build/types/drawplate, after package-dir.

An editable install maps `drawplate` to several folders with an import hook, which mypy and pyright do
not run. The folder must not start with a dot: pyright skips those silently.
"""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TYPES = ROOT / "build/types"

if __name__ == "__main__":
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(TYPES, ignore_errors=True)
    for package, folder in mapping.items():
        place = TYPES / package.replace(".", "/")
        place.mkdir(parents=True)
        for entry in (ROOT / folder).iterdir():
            if entry.name != "__pycache__":
                (place / entry.name).symlink_to(entry)

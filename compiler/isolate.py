"""Run a function in a process of its own, so that nothing is shared: no memory, no threads, no numerical state.

The parent calls `isolated("drawplate.bench:measure", {...})`; the child imports that function, calls it and hands back
JSON. `open_runnable` is how a child opens an artifact: it imports what the runtime needs and nothing more.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drawplate import errors
from drawplate.errors import DrawplateError, EvaluationError

if TYPE_CHECKING:
    from drawplate.backendbase import Backend
    from drawplate.runtime import Runnable


@dataclass(frozen=True)
class Subject:
    """An artifact and what opens it.

    opener: "module:name" or "file.py:name". A class is a Backend: `name().open(folder)`; a function is called with the
    folder, and with threads= if it takes that. files: what counts as the model (none: every file in the folder).
    openmp: OpenMP threads in its process, where the runtime has a pool of its own that they would fight with (None: as
    many as it is asked to run with).
    """

    name: str
    folder: Path
    opener: str
    files: tuple[Path, ...] = ()
    openmp: int | None = None

    @classmethod
    def of(cls, folder: Path, backend: type[Backend], name: str = "", files: tuple[Path, ...] = ()) -> Subject:
        """An artifact of this backend, opened by what the backend names for that, else by the class itself."""
        opener = backend.opener or f"{backend.__module__}:{backend.__qualname__}"
        return cls(name or folder.name, folder, opener, files, backend.openmp)

    @property
    def bytes(self) -> int:
        """Sizes of the files, added up."""
        files = self.files or tuple(f for f in self.folder.rglob("*") if f.is_file())
        return sum(f.stat().st_size for f in files)

    def request(self, threads: int | None) -> dict[str, Any]:
        """What a child needs to open it: the arguments of open_runnable."""
        request = {"opener": self.opener, "folder": str(self.folder), "threads": threads}
        return request if self.openmp is None else {**request, "openmp": self.openmp}


def isolated(function: str, request: Mapping[str, Any], *, threads: int | None = None, timeout: float = 3600) -> Any:
    """Call function ("module:name" or "file.py:name") with the request, a mapping that JSON can hold, in a new process.

    threads: given to OpenMP and its kin before the child loads any library; the request's "openmp" comes first.
    timeout: seconds.
    Raises what the child raised if that is a DrawplateError (a plugin's own kind as ours that it derives from), else
    EvaluationError with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="drawplate-") as folder:
        question, answer = Path(folder, "question.json"), Path(folder, "answer.json")
        question.write_text(json.dumps(dict(request)))
        environment = dict(os.environ)
        threads = request.get("openmp", threads)
        if threads is not None:
            environment.update({f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")})
        command = [sys.executable, "-P", "-m", __name__, function, str(question), str(answer)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(f"{function} did not finish", where=str(request), why=f"after {timeout} s") from error
        if not answer.is_file():
            output = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()[-12:]
            raise EvaluationError(
                f"{function} died in its process (exit code {done.returncode})",
                where=str(request.get("folder", "")),
                why="\n".join(output) or "it said nothing",
            )
        told = json.loads(answer.read_text())
    if "error" in told:
        kind: type[DrawplateError] = getattr(errors, told["kind"])
        raise kind(**told["error"])
    return told["result"]


def open_runnable(opener: str, folder: str, threads: int | None = None, openmp: int | None = None) -> Runnable:
    """The artifact, loaded. The thread count is set before anything of it is; openmp: of torch's, if they differ."""
    if openmp is not None or threads is not None:
        import torch

        torch.set_num_threads(openmp or threads or 1)
    found: Any = resolve(opener)
    if inspect.isclass(found):
        backend: Any = found()
        found = backend.open
    options = {"threads": threads} if "threads" in inspect.signature(found).parameters else {}
    runnable: Runnable = found(Path(folder), **options)
    return runnable


def resolve(name: str) -> Callable[..., Any]:
    """ "module:name" or "path/file.py:name" -> what it names. Raises EvaluationError if that is nothing."""
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found: Callable[..., Any] = getattr(module, attribute)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise EvaluationError(
            f"{name!r} cannot be imported", why=str(error), fix='write "module:name" or "file.py:name"'
        ) from error
    return found


def main(function: str, question: str, answer: str) -> None:
    """The child's side."""
    told: dict[str, Any]
    try:
        told = {"result": resolve(function)(json.loads(Path(question).read_text()))}
    except DrawplateError as error:
        told = {"error": {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}}
        told["kind"] = next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)
    Path(answer).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

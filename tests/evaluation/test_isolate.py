"""Functions in processes of their own, and how an artifact is opened there."""

import os

import pytest
import torch

from drawplate.backendbase import Backend
from drawplate.errors import EvaluationError, RuntimeMissing
from drawplate.isolate import Subject, isolated, open_runnable

SCRIPT = """
import os
from drawplate.errors import RuntimeMissing

def tell(request):
    return {"pid": os.getpid(), "omp": os.environ.get("OMP_NUM_THREADS"), **request}

class NoDriver(RuntimeMissing):
    pass

def refuse(request):
    raise NoDriver("no runtime here", where="host", why="none was built", fix="use the device")

def die(request):
    raise ValueError("broken kernel")

def vanish(request):
    os._exit(9)

class Box:
    def open(self, folder):
        return folder.name
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_function_runs_in_another_process_with_its_threads(script):
    told = isolated(f"{script}:tell", {"x": [1, "é"]}, threads=1)
    assert told["x"] == [1, "é"]
    assert told["omp"] == "1"
    assert told["pid"] != os.getpid()


def test_our_errors_come_back_whole(script):
    with pytest.raises(RuntimeMissing) as caught:
        isolated(f"{script}:refuse", {})
    assert str(caught.value) == ("no runtime here\n  where: host\n  why:   none was built\n  do:    use the device")


def test_a_child_that_dies_is_told_with_its_last_words(script):
    with pytest.raises(
        EvaluationError, match=r"die died in its process \(exit code 1\)(?s:.*)ValueError: broken kernel"
    ):
        isolated(f"{script}:die", {"folder": "here"})
    with pytest.raises(EvaluationError, match=r"vanish died in its process \(exit code 9\)\n  why:   it said nothing"):
        isolated(f"{script}:vanish", {})


@pytest.mark.parametrize("name", ["drawplate.nothing:here", "json:nothing", "nowhere.py:open", "json"])
def test_a_name_that_is_nothing_is_a_clear_error(name):
    with pytest.raises(EvaluationError, match=f"'{name}' cannot be imported(?s:.*)do:    write \"module:name\""):
        open_runnable(name, "folder")


def test_an_opener_may_be_a_backend_or_a_function(script, subject, tmp_path, texts):
    assert open_runnable(f"{script}:Box", str(tmp_path / "artifact")) == "artifact"
    tiny = subject(texts())
    runnable = open_runnable(**tiny.request(threads=1))
    assert runnable.step(torch.tensor([1, 2])).shape == (2, 258)
    assert torch.get_num_threads() == 1


def test_a_backend_names_what_opens_its_artifacts(tmp_path):
    class Plain(Backend):
        name = "plain"

    class Lean(Plain):
        opener = "lean.runtime:open_artifact"

    assert Subject.of(tmp_path / "a", Lean) == Subject("a", tmp_path / "a", "lean.runtime:open_artifact")
    found = Subject.of(tmp_path / "a", Plain, "other")
    assert (found.name, found.opener) == ("other", f"{Plain.__module__}:{Plain.__qualname__}")


def test_the_bytes_are_those_of_the_files(subject, texts):
    tiny = subject(texts())
    (tiny.folder / "more").mkdir()
    (tiny.folder / "more/weights.bin").write_bytes(b"x" * 1000)
    size = (tiny.folder / "program.txt").stat().st_size
    assert tiny.bytes == size + 1000
    only = Subject("tiny", tiny.folder, tiny.opener, files=(tiny.folder / "more/weights.bin",))
    assert only.bytes == 1000

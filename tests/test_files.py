"""Folders that are whole or not there: full disks, interrupts, and outputs that exist."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flowkit import tiny_disk
from safetensors.torch import save_file

from drawplate.errors import OutputError
from drawplate.files import new_folder, refuse_existing, refuse_full_disk, write_text


def write(out: Path, text: str, error: type[BaseException] | None = None) -> None:
    """A folder with one file, m; or an error behind it."""
    with new_folder(out, overwrite=True, mark="m") as folder:
        (folder / "m").write_text(text)
        if error:
            raise error


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    with tiny_disk(tmp_path / "disk") as place:
        yield place


def test_the_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out, mark="m") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "x"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_is_left_of_what_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write(tmp_path / "deep" / "out", "x", error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(disk: Path) -> None:
    with pytest.raises(OutputError) as caught, new_folder(disk / "out", mark="m") as folder:
        (folder / "file").write_bytes(bytes(1 << 20))
    assert str(caught.value) == (
        "the output could not be written\n"
        f"  where: {disk / 'out'}\n"
        "  why:   the disk is full\n"
        "  do:    make room, or choose another output"
    )
    assert list(disk.iterdir()) == []


def test_a_full_disk_told_by_a_library_in_rust(disk: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), new_folder(disk / "out", mark="m") as folder:
        save_file({"x": torch.zeros(1 << 18)}, folder / "x.safetensors")
    assert list(disk.iterdir()) == []


def test_a_disk_that_will_not_do(disk: Path) -> None:
    refuse_full_disk(disk / "deep" / "out", 60000)
    with pytest.raises(OutputError) as caught:
        refuse_full_disk(disk / "deep" / "out", 70000)
    assert caught.value.why == "it will have 70000 bytes, and 65536 are free"


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    """For machines where nobody may mount: the limit is of the process, so it is set in a child."""
    code = f"""
import resource, signal
from pathlib import Path
from drawplate.files import new_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
with new_folder(Path({str(tmp_path / "out")!r}), mark="m") as folder:
    (folder / "file").write_bytes(bytes(1 << 20))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "OutputError: the output could not be written" in done.stderr
    assert "the file is too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_something_else_is_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", mark="m"):
        (tmp_path / "input").read_bytes()


def test_a_place_that_cannot_hold_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="the output could not be written"),
        new_folder(tmp_path / "file" / "out", mark="m"),
    ):
        pass


def test_what_exists_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out, mark="m") as folder:
        (folder / "m").write_text("old")
    with pytest.raises(OutputError) as caught:
        refuse_existing(out, overwrite=False, mark="m")
    assert str(caught.value) == (
        "the output exists\n"
        f"  where: {out}\n"
        "  do:    choose another, or replace it: --overwrite on the command line, overwrite=True in Python"
    )
    with new_folder(out, overwrite=True, mark="m") as folder:
        (folder / "m").write_text("new")
        assert (out / "m").read_text() == "old"
    assert (out / "m").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_one_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "m").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(out, "new", KeyboardInterrupt)
    assert (out / "m").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_one_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "m").write_text("old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(KeyboardInterrupt):
        write(out, "new")
    assert (out / "m").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    match kind:
        case "folder":
            out.mkdir()
            (out / "thesis.tex").write_text("years of work")
        case "file":
            out.write_text("years of work")
        case _:
            out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="the output exists and is not an artifact"):
        refuse_existing(out, overwrite=True, mark="m")


def test_a_small_file_is_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "one")
    write_text(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]

"""Writing folders so that what stands at the output is whole, or is not there at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drawplate.errors import OutputError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


def refuse_existing(out: Path, *, overwrite: bool, mark: str) -> None:
    """Raise OutputError if `out` may not become the new folder; cheap, so ask before the work is done.

    overwrite: an existing folder is replaced if it holds a file `mark`, that is, if it is one of ours.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        fix = "choose another, or replace it: --overwrite on the command line, overwrite=True in Python"
        raise OutputError("the output exists", where=str(out), fix=fix)
    if not (out / mark).is_file():
        raise OutputError(
            "the output exists and is not an artifact",
            where=str(out),
            why=f"only a folder with a {mark} is overwritten, so that a slip of the pen costs nothing",
            fix="remove it yourself, or choose another",
        )


def refuse_full_disk(out: Path, count: int) -> None:
    """Raise OutputError if the disk that `out` would be on has no room for so many bytes."""
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < count:
        raise OutputError(
            "the output would not fit on its disk",
            where=str(out),
            why=f"it will have {count} bytes, and {free} are free",
            fix="make room, or choose another output",
        )


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False, mark: str) -> Iterator[Path]:
    """A folder to write into, which becomes `out` in one step when the block ends, and vanishes if it fails.

    Everything is on the disk before the rename; an old folder stays in place until the new one is whole. Raises
    OutputError where the disk is full or forbids it; other exceptions, KeyboardInterrupt among them, pass through.
    """
    refuse_existing(out, overwrite=overwrite, mark=mark)
    made = _missing_parents(out)
    # Beside the output, since a rename is only atomic within one file system.
    beside = out.parent / f".{out.name}.{secrets.token_hex(4)}.part"
    try:
        beside.mkdir(parents=True)
        yield beside
        sync_folder(beside)
        _swap(beside, out)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not empty: somebody else uses it by now
                parent.rmdir()
        number = _number(error)
        if number in _FULL:
            fix = "make room, or choose another output"
            raise OutputError("the output could not be written", where=str(out), why=_FULL[number], fix=fix) from error
        if isinstance(error, OSError) and str(error.filename or "").startswith(str(beside)):
            why = error.strerror or str(error)
            raise OutputError(
                "the output could not be written", where=str(out), why=why, fix="choose another output"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """A small file, whole or not at all: written beside and renamed."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the disk hold every file and folder below, before anything refers to them."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _missing_parents(out: Path) -> list[Path]:
    """The folders above `out` that do not exist yet, the deepest first."""
    return [parent for parent in out.parents if not parent.exists()]


def _swap(new: Path, out: Path) -> None:
    """Rename new to out; what stood there is moved aside first, and back if the rename fails."""
    if not out.exists():
        new.rename(out)
        return
    aside = new.with_suffix(".old")
    out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _number(error: BaseException) -> int | None:
    """The system's number for what went wrong; libraries in Rust only have it in their text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None

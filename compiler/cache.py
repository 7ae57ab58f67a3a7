"""Keeps the results of slow passes by content, so that a killed compile goes on where it was.

    <folder>/<key>/   program.txt, program.json, weights.safetensors   the program (see storing.py)
                      record-0.safetensors, ..                         what passes left for the artifact
                      entry.json                                       digests of these files, and the rest
    <folder>/work/    what a pass that is still running has put aside (env.checkpoints)

A key is the digest of everything that decides the result. An entry is written beside and renamed, so there is no
half-written one; one that was damaged since is found by its digests, removed, and computed again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import platformdirs

from drawplate.digest import digest, file_digest, program_digest
from drawplate.errors import OutputError, Refusal
from drawplate.files import new_folder
from drawplate.options import spec
from drawplate.passbase import Certificate, Env, Pass
from drawplate.program import Program
from drawplate.ranks import leads
from drawplate.records import Record
from drawplate.runner import Outcome, Timing
from drawplate.storing import load_program, save_program, weight_bytes
from drawplate.versions import versions

ENTRY = "entry.json"
WORTH_BYTES_PER_SECOND = 50_000_000  # writing, flushing and reading back an entry should take less than the pass


@dataclass(frozen=True)
class Cache:
    """folder: where entries are. slow_seconds: a pass that took at least so long is kept, if its result is not so large
    that computing it again is as quick; so is one that says it is slow. limit_bytes: of all entries together; those
    not used for longest go first."""

    folder: Path
    slow_seconds: float = 2.0
    limit_bytes: int = 32 << 30

    @classmethod
    def default(cls) -> Cache:
        """In the user's cache folder."""
        return cls(platformdirs.user_cache_path("drawplate") / "passes")

    def open(self, program: Program, passes: Sequence[Pass], env: Env) -> Journal:
        """The cache as one run of these passes sees it."""
        return Journal(self, program, passes, keys(program, passes, env))


@dataclass(frozen=True)
class Journal:
    """One run's way through the cache. keys: of the result after each pass."""

    cache: Cache
    program: Program
    passes: Sequence[Pass]
    keys: Sequence[str]

    def resume(self) -> tuple[Outcome, int]:
        """The outcome of as many passes as were kept, and how many these are. Damaged entries leave a note."""
        notes: list[str] = []
        for done in range(len(self.keys), 0, -1):
            folder = self._folder(done - 1)
            if not folder.is_dir():
                continue
            try:
                outcome = _read(folder)
            except Exception as error:  # noqa: BLE001  (whatever a damaged file does to a reader)
                notes.append(f"cache entry {folder.name} was damaged and is computed again: {_first_line(error)}")
                shutil.rmtree(folder, ignore_errors=True)
            else:
                os.utime(folder)  # used just now
                return replace(outcome, notes=(*outcome.notes, *notes)), done
        return Outcome(self.program, notes=tuple(notes)), 0

    def checkpoints(self, i: int) -> Path | None:
        """A folder for what pass i puts aside while it runs; a killed compile finds it again. None: no disk for it."""
        folder = self.cache.folder / "work" / self.keys[i]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None  # keep() will say that nothing can be written here
        return folder

    def keep(self, i: int, outcome: Outcome) -> Outcome:
        """Keep the outcome after pass i if it was slow. A cache that cannot be written costs a note, no compile."""
        if not leads():
            return outcome
        shutil.rmtree(self.cache.folder / "work" / self.keys[i], ignore_errors=True)
        seconds, worth = outcome.timings[-1].seconds, weight_bytes(outcome.program) / WORTH_BYTES_PER_SECOND
        if not (self.passes[i].slow or seconds >= max(self.cache.slow_seconds, worth)):
            return outcome
        try:
            _write(self._folder(i), outcome)
            _trim(self.cache.folder, self.cache.limit_bytes, keep=self.keys[i])
        except (OutputError, OSError) as error:
            note = f"the result of {self.passes[i].name!r} could not be kept: {_first_line(error)}"
            return replace(outcome, notes=(*outcome.notes, note))
        return outcome

    def _folder(self, i: int) -> Path:
        return self.cache.folder / self.keys[i]


def keys(program: Program, passes: Sequence[Pass], env: Env) -> list[str]:
    """The key of the result after each pass.

    The first link is the program's content; after that each key is made of the one before and the pass. A pass is
    deterministic, so what it was given already names its result: hashing that again would read gigabytes to learn
    nothing.
    """
    calibration = env.calibration.digest if env.calibration else ""
    key = digest(program_digest(program), str(env.seed), repr(env.target), calibration, json.dumps(versions()))
    found = []
    for pass_ in passes:
        read = (file_digest(path) if path.is_file() else "" for path in pass_.reads)
        key = digest(key, spec(pass_), code_digest(type(pass_).__module__), *read)
        found.append(key)
    return found


@lru_cache
def code_digest(module: str) -> str:
    """Of every source file of the packages around a pass's module, and of drawplate's: versions do not change with
    each edit. A pass without a source file (typed at a prompt) has another one in every process."""
    parts = module.split(".")
    around = {".".join(parts[: i + 1]) for i in range(len(parts))} | {"drawplate"}
    loaded = [sys.modules[name] for name in sorted(around) if name in sys.modules]
    files = {f for m in loaded for folder in getattr(m, "__path__", []) for f in Path(folder).rglob("*.py")}
    files |= {Path(m.__file__) for m in loaded if m.__file__}
    if getattr(sys.modules.get(module), "__file__", None) is None:
        return secrets.token_hex()
    h = blake2b(digest_size=16)
    for file in sorted(files):
        h.update(file.read_bytes())
    return h.hexdigest()


def _write(folder: Path, outcome: Outcome) -> None:
    if folder.is_dir():
        return  # another process was quicker, with the same content
    with new_folder(folder, mark=ENTRY) as beside:
        save_program(outcome.program, beside)
        for i, record in enumerate(outcome.records):
            record.write(beside / _file(i, record.name, record.suffix))
        about = {
            "files": {f.name: file_digest(f) for f in sorted(beside.iterdir())},
            "certificates": [asdict(c) for c in outcome.certificates],
            "refusals": [asdict(r) for r in outcome.refusals],
            "timings": [asdict(t) for t in outcome.timings],
            "notes": outcome.notes,
            "records": [(record.name, record.suffix) for record in outcome.records],
            "told": outcome.told,
        }
        (beside / ENTRY).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _read(folder: Path) -> Outcome:
    """Raises if any file is missing or is not as it was written."""
    about: dict[str, Any] = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    for name, expected in about["files"].items():
        if file_digest(folder / name) != expected:
            raise ValueError(f"{name} is not as it was written")
    return Outcome(
        load_program(folder),
        tuple(Certificate(**c) for c in about["certificates"]),
        tuple(Refusal(**r) for r in about["refusals"]),
        tuple(replace(Timing(**t), resumed=True) for t in about["timings"]),
        tuple(about["notes"]),
        tuple(Record.read(n, folder / _file(i, n, suffix)) for i, (n, suffix) in enumerate(about["records"])),
        tuple(about["told"]),
    )


def _file(i: int, name: str, suffix: str) -> str:
    return f"record-{i}-{name}{suffix}"


def _trim(folder: Path, limit_bytes: int, keep: str) -> None:
    """Remove the entries that were not used for longest until the rest is within the limit."""
    entries = sorted((e.parent for e in folder.glob(f"*/{ENTRY}")), key=lambda e: e.stat().st_mtime, reverse=True)
    total = 0
    for entry in entries:
        total += sum(f.stat().st_size for f in entry.iterdir())
        if total > limit_bytes and entry.name != keep:
            shutil.rmtree(entry, ignore_errors=True)


def _first_line(error: Exception) -> str:
    text = error.what + (f" ({error.why})" if error.why else "") if isinstance(error, OutputError) else str(error)
    return text.splitlines()[0] if text else type(error).__name__

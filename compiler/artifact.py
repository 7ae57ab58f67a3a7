"""Artifact: the files that a backend wrote, and the manifest that accounts for them.

The manifest says what was asked for, what came out, byte by byte, and what was proven on the way. It holds no dates
and no paths: the same recipe on the same model gives the same manifest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from drawplate.backendbase import Backend, ByteRow, Emission, Fallback
from drawplate.digest import digest, file_digest, weights_digest
from drawplate.errors import BackendError, OutputError, Refusal
from drawplate.passbase import Certificate
from drawplate.recipe import Recipe, Registry
from drawplate.runner import Timing
from drawplate.versions import versions

if TYPE_CHECKING:
    from drawplate.calibration import Calibration
    from drawplate.program import Program
    from drawplate.runner import Outcome
    from drawplate.runtime import Runnable

MANIFEST = "manifest.json"
FORMAT = "drawplate artifact 1"


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact. name: relative to its folder. bytes: its size."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the artifact is.

    model: the program's name. source_digest: of the program that came in, by content. recipe: its text. passes: what
    ran, in this order, the backend's own included. backend: its name and options. digest: of all files. bytes: the
    byte table; the rows of a file add up to its size. calibration: where the text came from, and its digest. parity:
    what was measured of the artifact against its program; if it is empty, notes say why, unless nobody asked.
    weights_digest: of the weights of the program that was written, by content; empty if that was not kept.
    """

    model: str
    source_digest: str
    recipe: str
    recipe_name: str
    passes: tuple[str, ...]
    backend: str
    seed: int
    versions: Mapping[str, str]
    digest: str
    files: tuple[FileEntry, ...]
    bytes: tuple[ByteRow, ...]
    certificates: tuple[Certificate, ...]
    refusals: tuple[Refusal, ...]
    fallbacks: tuple[Fallback, ...]
    notes: tuple[str, ...]
    calibration: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    weights_digest: str = ""
    format: str = FORMAT

    @property
    def file_bytes(self) -> int:
        """All files together, without the manifest."""
        return sum(f.bytes for f in self.files)

    def to_json(self) -> str:
        """The same text for the same content."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse. Raises ValueError, TypeError or KeyError on what is no manifest."""
        table = json.loads(text)
        if table["format"] != FORMAT:
            raise ValueError(f"its format is {table['format']!r}, this version reads {FORMAT!r}")
        for key, kind in _ROWS.items():
            table[key] = tuple(kind(**row) for row in table[key])
        for key in ("passes", "notes"):
            table[key] = tuple(table[key])
        return cls(**table)


_ROWS: dict[str, type[Any]] = {
    "files": FileEntry,
    "bytes": ByteRow,
    "certificates": Certificate,
    "refusals": Refusal,
    "fallbacks": Fallback,
}


@dataclass(frozen=True)
class Artifact:
    """A finished folder. timings and log: of the compile that just made it; they are not in the manifest, since they
    differ from run to run."""

    folder: Path
    manifest: Manifest
    timings: tuple[Timing, ...] = field(default=(), compare=False)
    log: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read a folder that compile() wrote. Raises OutputError if it is none."""
        folder = Path(folder)
        try:
            return cls(folder, Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else f"{MANIFEST}: {error}"
            fix = "give a folder that 'drawplate compile' wrote"
            raise OutputError("this is not an artifact", where=str(folder), why=why, fix=fix) from error

    @property
    def model_files(self) -> tuple[Path, ...]:
        """The files that hold weights or instructions: what the device loads, without tokenizer and the like."""
        loaded = {row.file for row in self.manifest.bytes if row.role != "asset"}
        return tuple(self.folder / f.name for f in self.manifest.files if f.name in loaded)

    def backend(self, session: Registry) -> Backend:
        """The backend that made it, with its options. Raises RecipeError if it is not installed."""
        return Recipe().retarget(self.manifest.backend, session).make_backend(session)

    def open(self, session: Registry) -> Runnable:
        """Ready to run on this host. Raises RuntimeMissing where no runtime exists."""
        return self.backend(session).open(self.folder)

    def damage(self) -> list[str]:
        """Every way in which the files are not as the manifest says; none if the artifact is whole."""
        found = []
        for entry in self.manifest.files:
            path = self.folder / entry.name
            if not path.is_file():
                found.append(f"{entry.name} is missing")
            elif path.stat().st_size != entry.bytes:
                found.append(f"{entry.name} has {path.stat().st_size} bytes, not {entry.bytes}")
            elif file_digest(path) != entry.sha256:
                found.append(f"{entry.name} has other contents")
        return found


def load_whole(folder: str | Path) -> Artifact:
    """Artifact.load, of one that is about to run. Raises OutputError if its files are not as they were written.

    Contents are read too, not sizes alone: runtimes answer from a flipped bit without a word, and sha256 takes 0.06 s
    for 90 MB, where opening an artifact takes seconds.
    """
    artifact = Artifact.load(folder)
    damage = artifact.damage()
    if damage:
        raise OutputError(
            "the artifact is damaged",
            where=str(folder),
            why="\n".join(damage),
            fix="copy it again from where it was compiled, or compile it again",
        )
    return artifact


def is_artifact(folder: str | Path) -> bool:
    """Did drawplate write this folder? Beside a model's config.json only a manifest of ours counts, which we look into:
    an artifact holds a copy of the one, and other programs call their files by the other name."""
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        return False
    ours = FORMAT.rpartition(" ")[0]
    return not (Path(folder) / "config.json").is_file() or ours in manifest.read_text("utf-8", errors="replace")


def finish(
    folder: Path,
    outcome: Outcome,
    emission: Emission,
    *,
    source_digest: str,
    recipe: Recipe,
    passes: Iterable[str],
    plugins: Mapping[str, str],
    calibration: Calibration | None = None,
    parity: Mapping[str, Any] = MappingProxyType({}),
    notes: Iterable[str] = (),
) -> Manifest:
    """Check what the backend wrote into the folder, and write the manifest beside it. Raises BackendError.

    passes: what ran. plugins: versions of the distributions that brought them and the backend. parity: what was
    measured of the files against their program. notes: what the user should know besides what the backend says. The
    outcome's records are written beside the files; no device loads them, so no budget counts them.
    """
    emission = _with_records(folder, outcome, emission)
    files = tuple(_entry(folder, path) for path in sorted(emission.files))
    _account(folder, outcome.program, emission, files, recipe.backend)
    manifest = Manifest(
        model=outcome.program.name,
        source_digest=source_digest,
        recipe=str(recipe),
        recipe_name=recipe.name,
        passes=tuple(passes),
        backend=recipe.backend_text,
        seed=recipe.seed,
        versions={**versions(), **plugins},
        digest=digest(*(f"{f.name} {f.sha256}" for f in files)),
        files=files,
        bytes=emission.bytes,
        certificates=tuple(map(_rounded, outcome.certificates)),
        refusals=outcome.refusals,
        fallbacks=emission.fallbacks,
        notes=(*emission.notes, *notes),
        calibration={"source": calibration.source, "digest": calibration.digest} if calibration else {},
        parity=dict(parity),
        weights_digest=weights_digest(outcome.program),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _with_records(folder: Path, outcome: Outcome, emission: Emission) -> Emission:
    """Each record as a file with a row of its own: the second of one name is called `<name>-2`."""
    taken: Counter[str] = Counter()
    paths = []
    for record in outcome.records:
        taken[record.name] += 1
        number = f"-{taken[record.name]}" if taken[record.name] > 1 else ""
        paths.append(folder / f"{record.name}{number}{record.suffix}")
        record.write(paths[-1])
    rows = [ByteRow(path.name, "asset", "", path.name, path.stat().st_size) for path in paths]
    return replace(emission, files=(*emission.files, *paths), bytes=(*emission.bytes, *rows))


def _entry(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, file_digest(path))


def _rounded(certificate: Certificate) -> Certificate:
    """Three digits: the rest of a measured error depends on the machine's rounding. JSON has no infinity."""
    error, bound = (
        float(f"{x:.3g}") if abs(x) < float("inf") else 1e300 for x in (certificate.error, certificate.bound)
    )
    return replace(certificate, error=error, bound=bound)


def _account(folder: Path, program: Program, emission: Emission, files: tuple[FileEntry, ...], backend: str) -> None:
    """Every weight once, every byte of a file in a row, every file known. BackendError tells all that is wrong."""
    wrong = []
    rows = Counter(row.name for row in emission.bytes if row.role == "weight")
    wrong += [f"weight {name} is in no row" for name in program.weights if not rows[name]]
    wrong += [f"weight {name} is in {count} rows" for name, count in rows.items() if count > 1]
    wrong += [f"row {name} is no weight of the program" for name in rows if name not in program.weights]
    planned: Counter[str] = Counter()
    for row in emission.bytes:
        planned[row.file] += row.bytes
    sizes = {f.name: f.bytes for f in files}
    wrong += [f"{f} has {n} bytes, its rows add up to {planned[f]}" for f, n in sizes.items() if n != planned[f]]
    wrong += [f"rows name {f}, which is not among the files" for f in planned if f and f not in sizes]
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    wrong += [f"{f} was written and is not among the files" for f in sorted(written - set(sizes))]
    if wrong:
        raise BackendError(
            f"backend {backend!r} does not account for what it wrote",
            why="; ".join(wrong),
            fix="this is a mistake in the backend: its byte table must be complete",
        )

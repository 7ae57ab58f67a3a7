"""How fast, how big, how much memory: artifacts measured in turn, each time in a process of its own.

    report = bench([Subject.of(a, Xnnpack), Subject.of(b, Xnnpack)], threads=2, rounds=5)
    print(report.rows[0].decode_rate, report.ratio("meta-8da4w", "fp32", "decode_rate"))

The rounds are interleaved (a, b, a, b, ..), so that whatever else the machine does falls on all alike; a ratio is taken
within each round. Peak memory is the child's high-water mark, VmHWM; `ru_maxrss` would carry the parent's over.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drawplate.errors import EvaluationError
from drawplate.evaluate.statistics import quantile
from drawplate.isolate import Subject, isolated, open_runnable
from drawplate.progress import quiet

if TYPE_CHECKING:
    from drawplate.passbase import Progress


@dataclass(frozen=True)
class Spread:
    """median of the rounds, with the quartiles around it."""

    median: float
    low: float
    high: float
    values: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), tuple(values))

    def __str__(self) -> str:
        """`97.2 [95.1, 98.0]`."""
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Row:
    """One artifact. Times are wall seconds, rates tokens per second; one value per round.

    first_seconds: from the prompt to the first new token, loaded and warm; first_cold_seconds: the very first time.
    cpu_per_token: CPU seconds of all threads per decoded token (steadier than wall time on a shared machine).
    peak_bytes: of the whole process; net_peak_bytes: less what Python with torch takes on its own.
    """

    name: str
    file_bytes: int
    load_seconds: Spread
    first_cold_seconds: Spread
    first_seconds: Spread
    prefill_rate: Spread
    decode_rate: Spread
    cpu_per_token: Spread
    peak_bytes: Spread
    net_peak_bytes: Spread


@dataclass(frozen=True)
class BenchReport:
    """rows: in the order given. baseline_bytes: peak of Python with torch imported and nothing else.
    read_rate: bytes per second that the threads read from memory, measured in the same rounds."""

    rows: tuple[Row, ...]
    threads: int
    prompt: int
    new_tokens: int
    rounds: int
    baseline_bytes: float
    read_rate: Spread
    machine: str
    load_average: float

    def row(self, name: str) -> Row:
        """The row of this name. Raises EvaluationError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise EvaluationError(f"no artifact {name!r} in this run", why=f"there are {[r.name for r in self.rows]}")

    def ratio(self, name: str, baseline: str, what: str) -> Spread:
        """row(name).what over row(baseline).what, round by round."""
        these, those = getattr(self.row(name), what), getattr(self.row(baseline), what)
        return Spread.of([a / b for a, b in zip(these.values, those.values, strict=True)])

    def bandwidth_share(self, name: str, bytes_per_token: int) -> Spread:
        """How much of the machine's memory read rate decoding uses, if each token reads this many bytes of weights."""
        rates = self.row(name).decode_rate.values
        return Spread.of([r * bytes_per_token / m for r, m in zip(rates, self.read_rate.values, strict=True)])

    def as_json(self) -> dict[str, Any]:
        """Everything, values of every round included, as JSON can hold it."""
        return asdict(self)


def bench(
    subjects: Sequence[Subject],
    *,
    threads: int,
    rounds: int = 5,
    prompt: int = 64,
    new_tokens: int = 32,
    repeats: int = 3,
    progress: Progress = quiet,
) -> BenchReport:
    """Measure each subject once per round. prompt, new_tokens: lengths in tokens; repeats: warm runs within a process,
    of which the median counts. Raises EvaluationError if there is nothing to measure or a child fails."""
    names = [s.name for s in subjects]
    if not subjects or len(set(names)) < len(names) or min(threads, rounds, prompt, repeats, new_tokens - 1) < 1:
        raise EvaluationError(
            f"a run of {names}, {rounds} rounds, {prompt} + {new_tokens} tokens, {repeats} repeats, {threads} threads",
            why="artifacts are told apart by name, there is at least one of each, and two tokens to time the second",
        )
    load = os.getloadavg()[0]
    shape = {"prompt": prompt, "new_tokens": new_tokens, "repeats": repeats}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    machine: list[dict[str, float]] = []
    turns = [(r, s) for r in range(rounds) for s in (None, *_rotated(subjects, r))]
    for _, subject in progress(turns, "rounds"):
        if subject is None:
            machine.append(isolated("drawplate.bench:measure_machine", {"threads": threads}, threads=threads))
        else:
            request = {**subject.request(threads), **shape}
            found[subject.name].append(isolated("drawplate.bench:measure", request, threads=threads))
    base = quantile([m["peak_bytes"] for m in machine], 0.5)
    return BenchReport(
        rows=tuple(_row(s, found[s.name], base) for s in subjects),
        threads=threads,
        prompt=prompt,
        new_tokens=new_tokens,
        rounds=rounds,
        baseline_bytes=base,
        read_rate=Spread.of([m["read_rate"] for m in machine]),
        machine=f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        load_average=load,
    )


def _rotated(subjects: Sequence[Subject], by: int) -> list[Subject]:
    """Each round starts with another one, so that no artifact always runs after the same neighbour."""
    at = by % len(subjects)
    return [*subjects[at:], *subjects[:at]]


def _row(subject: Subject, rounds: list[dict[str, float]], base: float) -> Row:
    def spread(key: str) -> Spread:
        return Spread.of([r[key] for r in rounds])

    return Row(
        subject.name,
        subject.bytes,
        spread("load_seconds"),
        spread("first_cold_seconds"),
        spread("first_seconds"),
        spread("prefill_rate"),
        spread("decode_rate"),
        spread("cpu_per_token"),
        spread("peak_bytes"),
        Spread.of([r["peak_bytes"] - base for r in rounds]),
    )


def _processor() -> str:
    """The processor's name as people know it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_bytes() -> float:
    """The most memory that this process had resident since it started its program."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measure(request: dict[str, Any]) -> dict[str, float]:
    """The child's side: load, feed a prompt, decode greedily; once cold, then `repeats` times warm."""
    start = time.perf_counter()
    runnable = open_runnable(request["opener"], request["folder"], request["threads"], request.get("openmp"))
    load = time.perf_counter() - start
    import torch

    count, new = request["prompt"], request["new_tokens"]
    if runnable.context is not None and count + new - 1 > runnable.context:
        raise EvaluationError(
            f"{count} + {new} tokens do not fit",
            where=request["folder"],
            why=f"its context is {runnable.context} tokens",
            fix="measure a shorter prompt or fewer new tokens",
        )
    ids = torch.arange(count) % 16 + 1
    first, rates, cpu = [], [], []
    for _ in range(1 + request["repeats"]):
        runnable.reset()
        start = time.perf_counter()
        token = runnable.step(ids)[-1].argmax().reshape(1)
        first.append(time.perf_counter() - start)
        start, work = time.perf_counter(), time.process_time()
        for _ in range(new - 1):
            token = runnable.step(token)[-1].argmax().reshape(1)
        rates.append((new - 1) / (time.perf_counter() - start))
        cpu.append((time.process_time() - work) / (new - 1))
    warm = quantile(first[1:], 0.5)
    return {
        "load_seconds": load,
        "first_cold_seconds": first[0],
        "first_seconds": warm,
        "prefill_rate": count / warm,
        "decode_rate": quantile(rates[1:], 0.5),
        "cpu_per_token": quantile(cpu[1:], 0.5),
        "peak_bytes": peak_bytes(),
    }


def measure_machine(request: dict[str, Any]) -> dict[str, float]:
    """The child's side: what Python with torch takes, and then how fast the threads read memory (best of ten)."""
    import torch

    torch.set_num_threads(request["threads"])
    peak = peak_bytes()
    block = torch.ones(1 << 26)  # 256 MB: several times any cache
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - start))
    return {"peak_bytes": peak, "read_rate": best}

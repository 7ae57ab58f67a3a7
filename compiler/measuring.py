"""Wall time and memory of a stretch of work, in this process."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil

INTERVAL_SECONDS = 0.02


class Meter:
    """`with Meter() as meter: ..`, then meter.seconds and meter.peak_rss_bytes (of the whole process).

    The peak is sampled every 20 ms: the kernel's own high-water mark is of the process's whole life, and what
    resets it is not portable.
    """

    seconds: float = 0.0
    peak_rss_bytes: int = 0

    def __enter__(self) -> Meter:
        self._process = psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._over.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._sample()
            self._over.wait(INTERVAL_SECONDS)

    def _sample(self) -> None:
        self.peak_rss_bytes = max(self.peak_rss_bytes, self._process.memory_info().rss)

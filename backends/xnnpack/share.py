"""A tied vocabulary is stored once: the delegate's copy of a constant becomes a second view of the same bytes.

XNNPACK reads its weights from named segments, ExecuTorch's embedding kernel from the segment of plain constants. Where
the bytes are the same, the named segment is pointed at the constant (it is an offset and a length; nothing forbids
that two overlap), and its own copy is cut out of the file. Everything is verified before the file is replaced.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drawplate.backends.xnnpack.executorch_adapter import ALIGNMENT, Layout, flatbuffer_tables, read_layout
from drawplate.errors import BackendError

SMALLEST = 64
"""Bytes below which nothing is shared: it would not be worth a look."""

# Fields of the flatbuffer: 4 + 2 * number, from schema/program.fbs.
SEGMENTS, OFFSET = 12, 4
HEADER_LENGTH = 64


@dataclass(frozen=True)
class Shared:
    """One segment that is a view of a constant. keys: the names it is found by. bytes: what that saves."""

    keys: tuple[str, ...]
    bytes: int


def share(path: Path) -> tuple[Shared, ...]:
    """Store once what is in the file twice; the file is replaced if that saves anything.

    Raises BackendError, and leaves the file as it was, if what comes out does not read back as it should.
    """
    layout = read_layout(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        views = find(layout, data)
        if not views:
            return ()
        wanted = move(layout, views)
        with path.with_suffix(".shared").open("wb") as out:
            _write(out, data, layout, wanted, views)
    new = path.with_suffix(".shared")
    try:
        _verify(path, layout, new, wanted)
    except BackendError:
        new.unlink()
        raise
    new.replace(path)
    keys: dict[int, list[str]] = {}
    for key, segment in layout.named.items():
        keys.setdefault(segment, []).append(key)
    return tuple(Shared(tuple(sorted(keys[s])), layout.segments[s][1]) for s in views)


def find(layout: Layout, data: Any) -> dict[int, int]:
    """Named segment -> the place in the file of a constant with the same bytes. data: the file."""
    segment, offsets = layout.constant
    if not offsets or segment >= len(layout.segments):
        return {}
    start, size = layout.segments[segment]
    by_beginning: dict[bytes, list[int]] = {}
    for offset in offsets:
        place = start + offset
        by_beginning.setdefault(bytes(data[place : place + ALIGNMENT]), []).append(place)
    starts = sorted(offset for offset, _ in layout.segments)
    views = {}
    for s in sorted(set(layout.named.values())):
        own, length = layout.segments[s]
        if start <= own < start + size:
            continue  # it is a view already
        after = next((o for o in starts if o > own), layout.size)
        for place in by_beginning.get(bytes(data[own : own + ALIGNMENT]), []):
            fits = place + length <= start + size and place % ALIGNMENT == 0 and own + length <= after
            if length >= SMALLEST and fits and _same(data, place, own, length):
                views[s] = place
                break
    return views


def _same(data: Any, a: int, b: int, length: int) -> bool:
    step = 1 << 24
    return all(
        data[a + i : min(a + i + step, a + length)] == data[b + i : min(b + i + step, b + length)]
        for i in range(0, length, step)
    )


def move(layout: Layout, views: Mapping[int, int]) -> Layout:
    """The layout once the copies are cut out. Each goes with the padding behind it, so that alignment stays."""
    cuts = _cuts(layout, views)
    dropped = {layout.segments[s][0] for s in views}

    def moved(offset: int) -> int:
        return offset - sum(end - begin for begin, end in cuts if begin < offset and end <= offset)

    segments = tuple((moved(views.get(s, offset)), size) for s, (offset, size) in enumerate(layout.segments))
    assert not any(offset in dropped for s, (offset, _) in enumerate(layout.segments) if s not in views)
    return replace(layout, size=layout.size - sum(end - begin for begin, end in cuts), segments=segments)


def _cuts(layout: Layout, views: Mapping[int, int]) -> list[tuple[int, int]]:
    starts = sorted({offset for offset, _ in layout.segments} | {layout.size})
    own = sorted(layout.segments[s][0] for s in views)
    return [(o, starts[starts.index(o) + 1]) for o in own]


def _write(out: Any, data: Any, before: Layout, after: Layout, views: Mapping[int, int]) -> None:
    """The header and flatbuffer with new numbers, and the segments that stay."""
    head = bytearray(data[: before.base])
    _patch(head, before, after)
    out.write(head)
    place = before.base
    for begin, end in [*_cuts(before, views), (before.size, before.size)]:
        _copy(out, data, place, begin)
        place = end


def _copy(out: Any, data: Any, begin: int, end: int) -> None:
    step = 1 << 24
    for i in range(begin, end, step):
        out.write(data[i : min(i + step, end)])


def _patch(head: bytearray, before: Layout, after: Layout) -> None:
    """Put the new offsets into the flatbuffer and the new length into the header, in place."""
    table, types = flatbuffer_tables()
    root = table(head, struct.unpack_from("<I", head, 0)[0])
    field = root.Offset(SEGMENTS)
    vector = root.Vector(field) if field else 0
    count = root.VectorLen(field) if field else 0
    if count != len(before.segments):
        raise _unknown(f"the flatbuffer lists {count} segments, not {len(before.segments)}")
    for i, ((old, _), (new, _)) in enumerate(zip(before.segments, after.segments, strict=True)):
        entry = table(head, root.Indirect(vector + 4 * i))
        at = entry.Offset(OFFSET)
        if not at:
            if new != old:
                raise _unknown(f"segment {i} has no offset to change")
            continue
        if entry.Get(types.Uint64Flags, entry.Pos + at) != old - before.base:
            raise _unknown(f"segment {i} is not where it should be")
        struct.pack_into("<Q", head, entry.Pos + at, new - before.base)
    header = bytes(head[:HEADER_LENGTH]).find(b"eh00")
    base, length = struct.unpack_from("<QQ", head, header + 16) if header >= 0 else (0, 0)
    if (base, length) != (before.base, before.size - before.base):
        raise _unknown("the header gives another length of its segments")
    struct.pack_into("<Q", head, header + 24, after.size - after.base)


def _unknown(why: str) -> BackendError:
    return BackendError(
        "the layout of the .pte is not known", where="sharing the vocabulary", why=why, fix="report this"
    )


def _verify(old: Path, before: Layout, new: Path, after: Layout) -> None:
    """Is the new file laid out as planned, and does every segment hold the bytes that it held?"""
    if read_layout(new) != after:
        raise _unknown("the file that was written reads back otherwise")
    with old.open("rb") as a, new.open("rb") as b:
        for (x, length), (y, _) in zip(before.segments, after.segments, strict=True):
            if not _equal(a, b, x, y, length):
                raise _unknown("a segment's bytes changed")


def _equal(a: Any, b: Any, x: int, y: int, length: int) -> bool:
    a.seek(x)
    b.seek(y)
    step, left = 1 << 22, length
    while left > 0:
        n = min(step, left)
        if a.read(n) != b.read(n):
            return False
        left -= n
    return True

"""Sharing bytes inside a .pte: what is saved, what is verified, what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from xnnkit import CACHED, decoder, passed, preset

from drawplate.backends.xnnpack import executorch_adapter
from drawplate.backends.xnnpack.emit import lower
from drawplate.backends.xnnpack.share import find, move, share
from drawplate.errors import BackendError
from drawplate.sources.source import Assets


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pte with its vocabulary twice."""
    path = tmp_path_factory.mktemp("pte") / "model.pte"
    lower(preset("8da8w"), path, Assets(), "bf16")
    return path


def copy(source: Path, folder: Path) -> Path:
    path = folder / source.name
    path.write_bytes(source.read_bytes())
    return path


def test_the_table_is_stored_once(unshared: Path, tmp_path: Path) -> None:
    path, table = copy(unshared, tmp_path), preset("8da8w").weights["model.embed_tokens.weight"]
    before = path.stat().st_size
    shared = share(path)
    assert [s.keys for s in shared] == [("model.embed_tokens.weight.codes",), ("model.embed_tokens.weight.scale",)]
    assert sum(s.bytes for s in shared) == table.nbytes
    assert before - path.stat().st_size >= table.nbytes
    executorch_adapter.load(path)
    assert share(path) == ()  # nothing is left to share
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_share(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    lower(passed(decoder(False), f"quantize-embedding{{bits=8}},{CACHED}"), path, Assets(), "bf16")
    content = path.read_bytes()
    assert share(path) == ()
    assert path.read_bytes() == content


def test_one_byte_of_difference(unshared: Path, tmp_path: Path) -> None:
    """Only what is the same to the last byte is shared."""
    path = copy(unshared, tmp_path)
    layout = executorch_adapter.read_layout(path)
    start, size = layout.segments[layout.named["model.embed_tokens.weight.codes"]]
    data = bytearray(path.read_bytes())
    data[start + size - 1] ^= 1
    path.write_bytes(bytes(data))
    assert [s.keys for s in share(path)] == [("model.embed_tokens.weight.scale",)]


def test_an_unknown_header_is_refused(unshared: Path, tmp_path: Path) -> None:
    path = copy(unshared, tmp_path)
    data = bytearray(path.read_bytes())
    at = bytes(data[:64]).find(b"eh00") + 24
    struct.pack_into("<Q", data, at, len(data))
    path.write_bytes(bytes(data))
    with pytest.raises(BackendError, match="the header gives another length of its segments"):
        share(path)
    assert path.read_bytes() == bytes(data)


def test_a_file_without_segments(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(bytes(64))
    with pytest.raises(BackendError, match=r"the file is no \.pte"):
        executorch_adapter.read_layout(path)


def test_the_plan_keeps_alignment(unshared: Path) -> None:
    layout = executorch_adapter.read_layout(unshared)
    views = find(layout, unshared.read_bytes())
    moved = move(layout, views)
    assert all(offset % executorch_adapter.ALIGNMENT == 0 for offset, _ in moved.segments)
    assert [size for _, size in moved.segments] == [size for _, size in layout.segments]

"""Files whose sizes are known beforehand, held against the safetensors library."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from drawplate.checkpoints.shards import Group, Item, Shard, index_text, shards

KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.bool)


def group(name: str, *tensors: torch.Tensor) -> Group:
    made = {f"{name}.{i}": t for i, t in enumerate(tensors)}
    items = tuple(Item(key, t.dtype, tuple(t.shape)) for key, t in made.items())
    return Group(name, "f32", items, lambda: made)


@given(
    tensors=st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=6)
)
@settings(max_examples=40, deadline=None)
def test_the_library_reads_what_is_written(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    made = [(torch.randn(shape) * 9).to(kind) for kind, shape in tensors]
    shard = Shard("a.safetensors", tuple(group(f"w{i}", t) for i, t in enumerate(made)))
    path = shard.write(folder)
    read = load_file(path)
    assert sorted(read) == sorted(f"w{i}.0" for i in range(len(made)))
    for i, tensor in enumerate(made):
        assert torch.equal(read[f"w{i}.0"], tensor)
    assert path.stat().st_size == sum(row.bytes for row in shard.rows())
    assert {row.name for row in shard.rows() if row.role == "weight"} == {f"w{i}" for i in range(len(made))}


@pytest.mark.parametrize(("limit", "files"), [(1 << 20, 1), (900, 2), (1, 4)])
def test_a_limit_makes_several_files_and_an_index(tmp_path, limit, files):
    made = shards([group(f"w{i}", torch.randn(10, 10), torch.ones(3)) for i in range(4)], limit)
    names = [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files + 1)]
    assert [s.file for s in made] == (names if files > 1 else ["model.safetensors"])
    index = json.loads(index_text(made))
    assert index["metadata"]["total_size"] == 4 * 412
    for shard in made:
        assert all(index["weight_map"][name] == shard.file for name in load_file(shard.write(tmp_path)))


def test_a_weight_is_made_when_it_is_written_and_only_then(tmp_path):
    order: list[str] = []

    def lazily(name: str) -> Group:
        def make() -> dict[str, torch.Tensor]:
            order.append(name)
            return {name: torch.zeros(2)}

        return Group(name, "f32", (Item(name, torch.float32, (2,)),), make)

    made = shards([lazily("a"), lazily("b")], 8)
    assert not order
    made[0].write(tmp_path)
    assert order == ["a"]

"""Streaming a text through a program while its weights are stored."""

from __future__ import annotations

import gc

import torch
from architectures import captured

from drawplate.analysis.sites import Site, sites
from drawplate.encoding import Encoding, QTensor, encode
from drawplate.passbase import Env
from drawplate.streaming import inputs_of, on_disk, second_moments, store_streamed

FOUR = Encoding.parse("i4 block 1x16 sym scale f32")
WINDOWS = torch.randint(3, 97, (5, 12), generator=torch.Generator().manual_seed(1))


def streamed(name: str, budget: int) -> tuple[dict[str, torch.Tensor], dict[str, QTensor]]:
    """The moments that each site was given, and what was stored."""
    program = captured(name)
    given: dict[str, torch.Tensor] = {}

    def encoder(site: Site, weight: torch.Tensor, moments: torch.Tensor) -> QTensor:
        given[site.name] = moments
        return encode(weight, FOUR)

    wanted = [s for s in sites(program) if s.role == "linear"]
    inputs = list(inputs_of(program, WINDOWS))
    return given, store_streamed(program, wanted, inputs, encoder, Env(), "store", budget=budget)


def test_each_linear_reads_what_the_stored_ones_before_it_give() -> None:
    program = captured("qwen2")
    given, stored = streamed("qwen2", budget=1 << 30)
    editor = program.edit()
    editor.weights.update(stored)
    after = editor.finish()
    last = next(s for s in reversed(sites(after)) if s.role == "linear")
    seen: list[torch.Tensor] = []
    editor = after.edit()
    value = editor.of(last.nodes[0]).all_input_nodes[0]
    output = next(n for n in editor.graph.nodes if n.op == "output")
    output.args = ((value,),)
    for ids, positions in inputs_of(after, WINDOWS):
        seen.append(editor.finish().module()(ids, positions)[0])
    torch.testing.assert_close(given[last.name], second_moments(seen), rtol=1e-4, atol=1e-4)


def test_values_on_disk_are_the_same_numbers() -> None:
    in_memory, on_file = streamed("llama", 1 << 30), streamed("llama", 4096)
    for name, moments in in_memory[0].items():
        assert torch.equal(moments, on_file[0][name])
    for name, weight in in_memory[1].items():
        assert torch.equal(weight.codes, on_file[1][name].codes)


def test_a_value_on_disk_leaves_no_file(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    value = torch.randn(3, 5)
    held = on_disk(value)
    assert torch.equal(held, value)
    assert not list(tmp_path.iterdir())
    del held
    gc.collect()

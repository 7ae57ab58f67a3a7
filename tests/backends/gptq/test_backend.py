"""Folders that are written: bit-exact when they are read back, every byte accounted for, refusals in full."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gptqkit import after, opened, source
from safetensors import safe_open
from safetensors.torch import load_file

from drawplate.api import compile as compile_model
from drawplate.backends.gptq.backend import GptqBackend
from drawplate.backends.gptq.reader import GptqReader
from drawplate.capture import Assets, capture
from drawplate.encoding import QTensor
from drawplate.errors import BackendError
from drawplate.invariants import same_integers
from drawplate.passes.fold_norms import FoldNorms
from drawplate.passes.quantize_embedding import QuantizeEmbedding
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.rotate import Rotate
from drawplate.passes.untie_head import UntieHead
from drawplate.probing import run
from drawplate.rehearsal import without_contents
from drawplate.sources.quiet import quiet_transformers
from drawplate.testing import byte_reasons

FOUR = QuantizeWeights(bits=4, block=(1, 16), scale="f16")
IDS = (torch.arange(24).reshape(2, 12) % 97, torch.arange(12).repeat(2, 1))


def written(name: str, folder: Path, *passes, backend: GptqBackend | None = None):
    """The program that was written, and the emission."""
    backend, source_ = backend or GptqBackend(), opened(name)
    program = after(source_.program, *passes, *backend.legalise())
    assert not backend.refusals(program, source_.assets), backend.refusals(program, source_.assets)
    folder.mkdir()
    emission = backend.emit(program, folder, source_.assets)
    assert not byte_reasons(emission, folder, program)
    predicted = backend.predict(without_contents(program), source_.assets)
    assert predicted == emission.bytes
    return program, emission


def read_back(folder: Path, program):
    """Read it, and hold every weight against the program's: the same integers or the same numbers."""
    back = GptqReader().read(folder, program.name).program
    assert str(back).splitlines()[2:] == str(program).splitlines()[2:] or back.weights.keys() != program.weights.keys()
    for name, weight in back.weights.items():
        if name in program.weights:
            assert same_integers(program.weights[name], weight), name
    return back


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "phi"])
def test_read_back_bit_for_bit(name, tmp_path):
    """A tied vocabulary, norms stored as w of 1 + w, weights stored [in, out], biases and layer norms."""
    program, _ = written(name, tmp_path / "out", FOUR)
    back = read_back(tmp_path / "out", program)
    assert back.encodings == program.encodings
    assert torch.equal(run(back, IDS, dtype=torch.float32)[0], run(program, IDS, dtype=torch.float32)[0])


@pytest.mark.parametrize(("bits", "block", "symmetric"), [(2, 16, False), (8, -1, True)])
def test_schemes(bits, block, symmetric, tmp_path):
    pass_ = QuantizeWeights(bits=bits, block=(1, block), symmetric=symmetric, scale="f16")
    program, emission = written("llama", tmp_path / "out", pass_)
    read_back(tmp_path / "out", program)
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (table["bits"], table["group_size"], table["sym"]) == (bits, block, symmetric)
    assert table["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    assert bool(emission.notes) is not symmetric
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == table


def test_mixed_bits_and_linears_that_stay(tmp_path):
    """What most have is said once, the others by name; a file of up to 12 kB each."""
    source_ = opened("llama")
    program = after(source_.program, FOUR)
    other = after(source_.program, QuantizeWeights(bits=8, block=(1, -1), symmetric=False, scale="f16"))
    weights = dict(program.weights)
    up, down = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
    weights[f"{up}.weight"] = other.weights[f"{up}.weight"]
    weights[f"{down}.weight"] = source_.program.weights[f"{down}.weight"]
    program = after(replace(program, weights=weights), *GptqBackend().legalise())
    backend, folder = GptqBackend(shard=12_000), tmp_path / "out"
    folder.mkdir()
    emission = backend.emit(program, folder, source_.assets)
    assert not byte_reasons(emission, folder, program)
    table = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert table["dynamic"] == {
        f"+:^{up.replace('.', chr(92) + '.')}$": {"bits": 8, "group_size": -1, "sym": False},
        f"-:^{down.replace('.', chr(92) + '.')}$": {},
    }
    assert (table["bits"], table["sym"], table["format"]) == (4, True, "gptq_v2")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert backend.predict(without_contents(program), source_.assets) == emission.bytes
    read_back(folder, program)


def test_rotated_with_folded_norms_and_a_split_vocabulary(tmp_path):
    """Norms are ones in the file; the configuration says that the head has a table of its own."""
    program, _ = written("llama", tmp_path / "out", FoldNorms(tied="split"), Rotate(), FOUR)
    assert "model.norm.weight" not in program.weights
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(held["model.norm.weight"], torch.ones(48))
    assert "lm_head.weight" in held
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    back = read_back(tmp_path / "out", program)
    a, b = (run(p, IDS, dtype=torch.float32)[0] for p in (back, program))
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_folded_norms_in_the_convention_of_the_checkpoint(tmp_path):
    """A norm of 1 + w that was folded away is w = 0 in the file."""
    program, _ = written("gemma", tmp_path / "out", FoldNorms(), FOUR)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(held["model.layers.0.input_layernorm.weight"], torch.zeros(48))
    assert "lm_head.weight" not in held
    read_back(tmp_path / "out", program)


def test_a_head_that_is_stored_as_integers(tmp_path):
    """97 tokens do not fill words; 4 bits of a head of 96 do."""
    source_ = opened("llama")
    program = after(source_.program, UntieHead(), QuantizeWeights(where="all", bits=4, block=(1, 16), scale="f16"))
    (refusal,) = GptqBackend().check(program)
    assert str(refusal) == (
        "lm_head.weight (weight): its axis out of 97 does not fill words of 32 bits: 8 codes fill a word; "
        "leave it in floating point"
    )


def test_the_original_loads_where_nothing_is_stored_as_integers(tmp_path):
    """Then it is a plain folder, which transformers itself loads."""
    import transformers

    program, _ = written("gemma", tmp_path / "out", backend=GptqBackend(floats="f32"))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(input_ids=IDS[0], position_ids=IDS[1], use_cache=False).logits
    assert torch.allclose(theirs, run(program, IDS, dtype=torch.float32)[0], atol=1e-4)


def test_transformers_computes_the_same_from_the_dequantised_weights(tmp_path):
    """What a loader does, by hand: scales[g_idx] (q - z) in place of each weight of the architecture's own model."""
    import transformers

    program, _ = written("phi", tmp_path / "out", FOUR)
    held = load_file(tmp_path / "out" / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(source("phi"))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        state[name] = by_hand(held, module) if f"{module}.qweight" in held else held[name].float()
    model.load_state_dict(state)
    with torch.no_grad():
        theirs = model(input_ids=IDS[0], position_ids=IDS[1], use_cache=False).logits
    assert torch.allclose(theirs, run(program, IDS, dtype=torch.float32)[0], atol=1e-4)


def by_hand(held: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """float32 [out, in] of 4-bit tensors of version 1, as the format's papers write it."""
    shifts = torch.arange(0, 32, 4)
    q = ((held[f"{module}.qweight"][:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
    z = ((held[f"{module}.qzeros"][:, :, None] >> shifts) & 15).flatten(1) + 1
    order = held[f"{module}.g_idx"].long()
    return (held[f"{module}.scales"].float()[order] * (q - z[order])).t()


def test_version_1_has_no_zero_point_of_0(tmp_path):
    backend, source_ = GptqBackend(version="1"), opened("llama")
    pass_ = QuantizeWeights(bits=2, block=(1, 16), symmetric=False, scale="f16")
    program = after(source_.program, pass_, *backend.legalise())
    with pytest.raises(BackendError) as caught:
        backend.emit(program, tmp_path, source_.assets)
    assert str(caught.value).startswith(
        "version 1 of the layout cannot hold all zero points\n  where: model.layers.0.mlp.gate_proj.weight\n"
    )
    assert "would wrap\n  do:    write version=2, or leave it to version=auto" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_the_format_cannot_say_is_refused():
    source_ = opened("llama")
    for pass_, why in (
        (QuantizeWeights(bits=5, block=(1, 16)), "GPTQ has no 5 bits; use 2, 3, 4, 8"),
        (
            QuantizeWeights(block=(1, 24)),
            "GPTQ has no blocks of 1x24; use 1x and 16, 32, 64, 128, 256, 512, 1024 or -1",
        ),
        (
            QuantizeWeights(bits=3, block=(1, 16)),
            "its axis in of 48 does not fill words of 32 bits: 32 codes fill three words",
        ),
        (QuantizeEmbedding(), "a table that tokens look up stays floating point in this format"),
    ):
        program = after(source_.program, pass_)
        assert any(why in str(r) for r in GptqBackend().check(program)), why


def test_a_model_without_a_configuration_is_refused():
    (refusal,) = GptqBackend().check_source(opened("llama").program, Assets())
    assert str(refusal) == (
        "llama: no config.json came with it, which says what a loader builds; compile from a Hugging Face folder"
    )


def test_a_compile_from_the_folder_and_again_from_what_it_left(tmp_path):
    """Scales that are wider than the format's are rounded by a pass of the backend, which is measured and told."""
    recipe = "quantize-weights{bits=4,block=1x16,symmetric=false} -> gptq"
    first = compile_model(source("llama"), recipe, out=tmp_path / "one", cache=False)
    certificates = {(c.pass_name, c.invariant): c for c in first.manifest.certificates}
    assert 0 < certificates["narrow-floats", "NARROWS"].error <= 1
    assert "the scales of 14 weights were rounded to f16; with scale=f16 they are chosen so" in first.manifest.notes
    assert sum(r.bytes for r in first.manifest.bytes) == first.manifest.file_bytes
    second = compile_model(first.folder, " -> gptq", out=tmp_path / "two", cache=False)
    with (
        safe_open(first.folder / "model.safetensors", "pt") as a,
        safe_open(second.folder / "model.safetensors", "pt") as b,
    ):
        assert list(a.keys()) == list(b.keys())
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())  # noqa: SIM118
    program = capture(first.folder).program
    assert all(isinstance(program.weights[n], QTensor) for n in program.encodings)
    runner = GptqBackend().open(first.folder)
    logits = runner.step(IDS[0][0])
    assert torch.allclose(logits, run(program, (IDS[0][:1], IDS[1][:1]), dtype=torch.float32)[0][0])

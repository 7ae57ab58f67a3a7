"""Calibrating: a device that says of a model what was measured of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawplate.calibrating import calibrate
from drawplate.device import Device
from drawplate.errors import CaptureError
from drawplate.sources.outline import capture_config

SMALL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}


def test_rates_are_of_this_host_and_name_how_they_were_measured(tmp_path: Path) -> None:
    config = tmp_path / "small.json"
    config.write_text(json.dumps(SMALL))
    found = calibrate("here", threads=1, rounds=1, config=config)
    device = found.device
    assert Device.from_toml(device.to_toml(), "here", where="test") == device
    assert "1 threads, 1 rounds of fp32, meta-8da4w" in device.source
    for rates in (device.float, device.integer):
        assert 1e7 < rates.read < 1e12
        assert 1e8 < rates.multiply_adds < 1e13
    assert 1e8 < found.read_rate < 1e12


def test_the_model_that_is_shipped_for_it_is_larger_than_caches() -> None:
    program = capture_config("calibration").program
    assert sum(w.nbytes for w in program.weights.values()) > 500e6  # in 4 bits an eighth


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(CaptureError, match="there is no configuration 'calibrat'") as error:
        calibrate("here", threads=1, config="calibrat")
    assert "did you mean 'calibration'?" in error.value.fix

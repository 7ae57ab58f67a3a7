"""Run by test_memory.py in a process of its own: what trainings say they take, and what they take, as JSON."""

import json
import sys

import psutil
import torch
import transformers

from drawplate.calibration import Calibration
from drawplate.canonical import canonicalise
from drawplate.capture import capture
from drawplate.measuring import Meter
from drawplate.passbase import Env
from drawplate.passes.quantize_weights import QuantizeWeights
from drawplate.passes.train_blocks import TrainBlocks
from drawplate.passes.train_scales import TrainScales
from drawplate.passes.train_weights import TrainWeights

CONFIG = transformers.LlamaConfig(
    vocab_size=6000, hidden_size=512, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=8
)


def main() -> None:
    model = canonicalise(capture(transformers.LlamaForCausalLM(CONFIG)).program)
    text = Calibration.of(torch.randint(3, 6000, (2, 128)), "random")
    stored = QuantizeWeights("all", 4, (1, 32)).run(model, Env())
    for pass_, program in (
        (TrainScales(held=0, batch=1), stored),
        (TrainBlocks(held=0, epochs=1), model),
        (TrainWeights(held=0, batch=1), model),
    ):
        said: list[str] = []
        there = psutil.Process().memory_info().rss
        with Meter() as meter:
            pass_.run(program, Env(calibration=text, original=model, say=said.append))
        sys.stdout.write(json.dumps({"said": said[0], "taken": meter.peak_rss_bytes - there}) + "\n")


main()

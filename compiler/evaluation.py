"""How good a compressed model is: text (perplexity, distance to the original) and choice tasks.

    windows = load_text("evaluation.txt", tokenizer, length=1024, count=16).windows
    report = language({"fp32": original, "4 bit": artifact.open()}, windows, original="fp32")
    print(report["4 bit"].perplexity, report["4 bit"].against.kl)

    items = load_items("piqa.jsonl")
    before, after = (choices(m, items, tokenizer, count=300) for m in (original, program))
    print(after.accuracy_normalised, after.against(before))

A model is a Program (windows at once, in batches) or any Runnable (an artifact through its runtime, token by token).
"""

from __future__ import annotations

from drawplate.calibration import Calibration, load_text
from drawplate.evaluate.choices import ChoiceReport, Item, choices, load_items
from drawplate.evaluate.language import Divergence, LanguageReport, language
from drawplate.evaluate.sources import Model
from drawplate.evaluate.statistics import Estimate, Paired

__all__ = [
    "Calibration",
    "ChoiceReport",
    "Divergence",
    "Estimate",
    "Item",
    "LanguageReport",
    "Model",
    "Paired",
    "choices",
    "language",
    "load_items",
    "load_text",
]

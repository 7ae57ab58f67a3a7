"""Measure what a compressed model lost: perplexity, KL divergence and top-1 agreement, with standard errors.

    python examples/03_measure.py MODEL ARTIFACT TEXT      (ARTIFACT: a folder that 01_compile.py wrote)

The same on the command line: drawplate eval ARTIFACT --original MODEL --text TEXT
"""

import sys
from pathlib import Path

import drawplate
from drawplate.canonical import canonicalise
from drawplate.evaluation import language, load_text
from drawplate.tokens import Tokenizer

model, folder, text = sys.argv[1:4]
length = int(sys.argv[4]) if len(sys.argv) > 4 else 256

session = drawplate.Session()
original = canonicalise(drawplate.capture(model).program)
artifact = drawplate.Artifact.load(folder).open(session)  # in its own runtime, on this machine
windows = load_text(text, Tokenizer.load(Path(folder)), length=length, count=4).windows

report = language({"original": original, "artifact": artifact}, windows, original="original")
for name, r in report.items():
    print(f"{name}: perplexity {r.perplexity}")
against = report["artifact"].against
if against:
    print(
        f"KL {against.kl} nats per token, same top token {against.agreement}, perplexity x {against.perplexity_ratio}"
    )

"""What is said, for a person who does not know what KL is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drawplate.evaluate.statistics import Estimate
from drawplate.explain.report import Activations, Curve, Explanation, Loss, Part, Point, Upgrade
from drawplate.explain.words import bits_title, curve_title, label, layers_title, ranked_title, verdict

EIGHT = Upgrade("i8 block 1x-1 sym scale f32", 8.0, 400_000, 0.001, ("layers.0.mlp.down_proj.weight",))


def part(name: str, share: float, layer: str = "0", **more: Any) -> Part:
    """One that costs this share of a KL of 0.4."""
    costs = Estimate(0.4 * share, 0.004 * share, 4)
    given: dict[str, Any] = {"won_back": costs, "only": costs, "upgrade": None} | more
    where = name.removesuffix(".weight").removeprefix(f"layers.{layer}.")
    return Part(name, layer, where, "linear", "i4 block 1x32 sym scale bf16", 4.5, 500_000, 0.1, 0.1, 0.1, **given)


def explanation(*parts: Part, kl: float = 0.4, **more: Any) -> Explanation:
    """Of a model of which that was measured."""
    given: dict[str, Any] = {
        "loss": Loss(Estimate(kl, 0.02, 4), Estimate(0.66, 0.01, 4), 29.4, 20.3),
        "rewritten": 0.0,
        "layers": tuple(dict.fromkeys(p.layer for p in parts)),
        "components": tuple(dict.fromkeys(p.component for p in parts)),
    }
    return Explanation("tiny", "a -> b", "text.txt", 1024, 256, 90_000_000, parts=parts, **(given | more))


WORST = part("layers.0.mlp.down_proj.weight", 0.31, upgrade=EIGHT)
SMALL = tuple(part(f"layers.{i}.mlp.up_proj.weight", 0.02, str(i)) for i in range(9))


def test_one_weight_that_does_it_and_what_would_mend_it() -> None:
    whole, *rest = verdict(explanation(WORST, *SMALL))
    assert whole == (
        "What the compressed model predicts is clearly off the original: both name the same likeliest next token in "
        "66 % of places, and perplexity goes from 20.3 to 29.4 (KL 0.4 nats per token)."
    )
    assert rest == [
        "layers.0.mlp.down_proj.weight alone causes 31 % of the loss; giving it 8 bits would cost 0.4 MB.",
        "Layer 0 does most: 67 % of all harm.",
        "Half of all harm is in one of the 10 weights: better bits for these are well spent.",
    ]


@pytest.mark.parametrize(
    ("upgrade", "remedy"),
    [
        (None, ""),
        (
            replace(EIGHT, members=("a", "b", "c")),
            "; giving it and the two that must be stored like it 8 bits would cost",
        ),
        (replace(EIGHT, encoding="float", bits=32.0), "; leaving it in floating point would cost 0.4 MB"),
        (
            replace(EIGHT, encoding="i4 block 1x16 sym scale f32", bits=4.0),
            "; storing it as 'i4 block 1x16 sym scale f32' would cost 0.4 MB",
        ),
    ],
)
def test_what_would_mend_it(upgrade: Upgrade | None, remedy: str) -> None:
    said = verdict(explanation(replace(WORST, upgrade=upgrade), *SMALL))
    assert said[1].startswith(f"layers.0.mlp.down_proj.weight alone causes 31 % of the loss{remedy}")


def test_the_price_of_a_group_is_told_once() -> None:
    both = replace(EIGHT, members=("layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"))
    pair = (part(name, 0.3, upgrade=both) for name in both.members)
    said = verdict(explanation(*pair, *SMALL))
    assert said[1].endswith("giving it and the one that must be stored like it 8 bits would cost 0.4 MB.")
    assert said[2] == "layers.0.mlp.up_proj.weight alone causes 30 % of the loss."


def test_harm_that_is_spread() -> None:
    said = verdict(explanation(*(replace(p, upgrade=EIGHT) for p in SMALL)))
    assert said[1] == "No single weight is to blame: the worst, layers.0.mlp.up_proj.weight, causes 2.0 % of the loss."
    assert said[2] == (
        "The harm is spread over many of the 9 weights: a better way of rounding all of them (method=gptq, smaller "
        "groups, rotations) helps more than bits for a few."
    )


def test_harm_that_is_lost_in_noise() -> None:
    noisy = replace(WORST, only=Estimate(0.1, 0.02, 4), won_back=Estimate(0.1, 0.09, 4))
    said = verdict(explanation(noisy, *SMALL))
    assert said[1] == "No single weight's harm stands out from what varies between pieces of text."


@pytest.mark.parametrize(
    ("kl", "how"),
    [
        (0.002, "all but the same as"),
        (0.03, "very close to"),
        (0.1, "close to"),
        (0.3, "clearly off"),
        (2.0, "far from"),
    ],
)
def test_how_far_it_is(kl: float, how: str) -> None:
    assert verdict(explanation(WORST, kl=kl))[0].startswith(
        f"What the compressed model predicts is {how} the original:"
    )


def test_what_is_not_the_weights_fault() -> None:
    rounded = Activations(Estimate(0.05, 0.01, 4), Estimate(0.08, 0.01, 4))
    said = verdict(explanation(WORST, *SMALL, activations=rounded, rewritten=0.04))
    assert said[1] == "10 % of it was there before any weight was stored."
    assert said[-1] == "Rounding activations while the model runs causes 20 % of the loss, whatever the weights are."


def test_bytes_that_could_be_spent_better() -> None:
    curve = Curve((Point(60_000_000, 0.9), Point(88_000_000, 0.1)), Point(90_000_000, 0.35), 0.36, "menu")
    found = explanation(WORST, *SMALL, curve=curve)
    assert verdict(found)[-1] == (
        "The same 90.00 MB, spent where they help most, are expected to lose 0.1 nats per token in stored weights "
        "instead of 0.35: see allocate-bits."
    )
    assert curve_title(found) == "Spent where they help most, the same bytes would lose 71 % less (expected)"
    spent = replace(found, curve=replace(curve, artifact=Point(90_000_000, 0.11)))
    assert len(verdict(spent)) == len(verdict(found)) - 1
    assert curve_title(spent) == "These bytes are about as well spent as this menu allows"


def test_titles_say_the_finding() -> None:
    found = explanation(WORST, *SMALL)
    assert ranked_title(found) == "Half of the harm is in one of 10 weights"
    assert layers_title(found) == "Layer 0 does most: 67 % of all harm"
    assert bits_title(found) == "Every weight takes 4.5 bits, scales included"
    assert bits_title(explanation(replace(WORST, bits=8.0), *SMALL)) == "Weights take 4.5 to 8 bits, scales included"
    assert ranked_title(explanation(*SMALL)) == "The harm is spread over many of the 9 weights"
    table = part("embed.weight", 0.9, "in")
    assert layers_title(explanation(table, *SMALL)) == "What stands before the layers does most: 83 % of all harm"


def test_labels() -> None:
    assert label(WORST) == "layer 0 mlp.down_proj"
    assert label(part("embed.weight", 0.1, "in")) == "embed"

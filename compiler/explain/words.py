"""What an explanation comes to, in sentences for somebody who has never heard of KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from drawplate.explain.report import Explanation, Part, Upgrade
from drawplate.planning import size

# In nats per token. A rule of thumb: 8-bit weights are at 0.02, careful 4-bit ones at 0.1, plain 3-bit ones above 1.
DISTANCES = ((0.01, "all but the same as"), (0.05, "very close to"), (0.15, "close to"), (0.5, "clearly off"))
FAR = "far from"
TELLING = 0.05  # a share of the loss that is worth a name
BETTER = 0.8  # of the expected loss: below that another spending of the bytes is worth the trouble
NAMED = 3  # weights that are named
FAIR = 3  # times its equal share of the harm: from there on a layer is named
SPREADS = 2.0  # standard errors between a harm and none


def verdict(found: Explanation) -> tuple[str, ...]:
    """The most important first."""
    return (*_whole(found), *_worst(found), *_spread(found), *_activations(found), *_elsewhere(found))


def percent(share: float) -> str:
    """Of one, in two digits.

    >>> percent(0.314), percent(0.0314), percent(0.0002), percent(-0.01)
    ('31 %', '3.1 %', '0.0 %', '-1.0 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.1f} %"


def label(part: Part) -> str:
    """Short, for axes and tables: `layer 3 mlp.down_proj`."""
    return f"layer {part.layer} {part.component}" if part.layer.isdigit() else part.component


def price(count: int) -> str:
    """Bytes to be spent, roughly.

    >>> price(389_376), price(1920)
    ('0.39 MB', '1.9 kB')
    """
    return f"{count / 1e6:.2g} MB" if count >= 1e4 else f"{count / 1e3:.2g} kB"


def ranked_title(found: Explanation) -> str:
    """What the ranking shows."""
    half, all_ = half_of_the_harm(found), len(found.parts)
    if half < all_ / 4:
        return f"Half of the harm is in {_count(half)} of {all_} weights"
    return f"The harm is spread over many of the {all_} weights"


def layers_title(found: Explanation) -> str:
    """Which layer does most."""
    worst, share = _worst_layer(found)
    return f"{_layer(worst)} does most: {percent(share)} of all harm"


def bits_title(found: Explanation) -> str:
    """How many bits there are."""
    bits = [p.bits for p in found.parts]
    if max(bits) - min(bits) < 0.05:
        return f"Every weight takes {bits[0]:.3g} bits, scales included"
    return f"Weights take {min(bits):.3g} to {max(bits):.3g} bits, scales included"


def curve_title(found: Explanation) -> str:
    """Could the bytes be spent better?"""
    assert found.curve is not None
    best, own = found.curve.at(found.curve.artifact.bytes), found.curve.artifact
    if best is None or not own.kl or best.kl > BETTER * own.kl:
        return "These bytes are about as well spent as this menu allows"
    return f"Spent where they help most, the same bytes would lose {percent(1 - best.kl / own.kl)} less (expected)"


def half_of_the_harm(found: Explanation) -> int:
    """How many of the worst weights make up half of the sum of all harms."""
    harms = [max(0.0, p.harm) for p in found.parts]
    return 1 + sum(so_far < sum(harms) / 2 for so_far in accumulate(harms))


def _whole(found: Explanation) -> Iterator[str]:
    loss = found.loss
    how = next((word for limit, word in DISTANCES if loss.kl.value < limit), FAR)
    yield (
        f"What the compressed model predicts is {how} the original: both name the same likeliest next token in "
        f"{percent(loss.agreement.value)} of places, and perplexity goes from {loss.original_perplexity:.4g} to "
        f"{loss.perplexity:.4g} (KL {loss.kl.value:.3g} nats per token)."
    )
    if found.loss.kl.value > 0 and found.share(found.rewritten) > TELLING:
        yield f"{percent(found.share(found.rewritten))} of it was there before any weight was stored."


def _worst(found: Explanation) -> Iterator[str]:
    worst = found.parts[0]
    share = found.share(worst.harm)
    if worst.error is not None and worst.harm <= SPREADS * worst.error:
        yield "No single weight's harm stands out from what varies between pieces of text."
    elif share < TELLING:
        yield f"No single weight is to blame: the worst, {worst.name}, causes {percent(share)} of the loss."
    else:
        told: set[Upgrade | None] = set()
        for part in found.parts[:NAMED]:
            if found.share(part.harm) >= TELLING:
                remedy = _remedy(part) if part.upgrade not in told else ""
                yield f"{part.name} alone causes {percent(found.share(part.harm))} of the loss{remedy}."
                told.add(part.upgrade)


def _remedy(part: Part) -> str:
    """What would mend it, and its price."""
    upgrade = part.upgrade
    if upgrade is None:
        return ""
    others = len(upgrade.members) - 1
    them = f"it and the {_count(others)} that must be stored like it" if others else "it"
    if upgrade.encoding == "float":
        return f"; leaving {them} in floating point would cost {price(upgrade.extra_bytes)}"
    if upgrade.bits <= part.bits:
        return f"; storing {them} as '{upgrade.encoding}' would cost {price(upgrade.extra_bytes)}"
    return f"; giving {them} {upgrade.bits:.0f} bits would cost {price(upgrade.extra_bytes)}"


def _spread(found: Explanation) -> Iterator[str]:
    if _worst_layer(found)[1] > FAIR / len(found.layers):
        yield f"{layers_title(found)}."
    half, all_ = half_of_the_harm(found), len(found.parts)
    if all_ > 1 and half < all_ / 4:
        yield f"Half of all harm is in {_count(half)} of the {all_} weights: better bits for these are well spent."
    elif all_ > 1:
        yield (
            f"The harm is spread over many of the {all_} weights: a better way of rounding all of them (method=gptq, "
            "smaller groups, rotations) helps more than bits for a few."
        )


def _activations(found: Explanation) -> Iterator[str]:
    if found.activations is not None and found.share(found.activations.won_back.value) >= TELLING:
        share = percent(found.share(found.activations.won_back.value))
        yield f"Rounding activations while the model runs causes {share} of the loss, whatever the weights are."


def _elsewhere(found: Explanation) -> Iterator[str]:
    if found.curve is None:
        return
    own = found.curve.artifact
    best = found.curve.at(own.bytes)
    if best is not None and own.kl > 0 and best.kl <= BETTER * own.kl:
        yield (
            f"The same {size(own.bytes)}, spent where they help most, are expected to lose {best.kl:.2g} nats per "
            f"token in stored weights instead of {own.kl:.2g}: see allocate-bits."
        )


def _worst_layer(found: Explanation) -> tuple[str, float]:
    """And its share of the sum of all harms."""
    harms = {layer: max(0.0, harm) for layer, harm in found.by_layer.items()}
    worst = max(harms, key=lambda layer: harms[layer])
    return worst, harms[worst] / (sum(harms.values()) or 1.0)


def _layer(layer: str) -> str:
    return {"in": "What stands before the layers", "out": "What stands behind the layers"}.get(layer, f"Layer {layer}")


def _count(number: int) -> str:
    """In words while it is small.

    >>> _count(2), _count(17)
    ('two', '17')
    """
    words: Sequence[str] = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)

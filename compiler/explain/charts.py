"""The charts of an explanation, as Vega-Lite specifications (altair)."""

from __future__ import annotations

from typing import Any

import altair as alt

from drawplate.explain.report import Curve, Explanation, Part, Point
from drawplate.explain.words import label

SITES = 25  # bars of the ranking
FAR = 1000  # times less than the artifact loses: below the curve
# Okabe and Ito's colours (2008, jfly.uni-koeln.de/color), which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#333333")
MEASURED, EXPECTED = "#0072B2", "#A9CFE8"
INK, GRID = "#333333", "#E6E6E6"
ROW = 22  # pixels of a bar or a tile
ROOM = 1.15  # times the longest bar
CONFIG: dict[str, Any] = {
    "view": {"stroke": None},
    "font": "system-ui, sans-serif",
    "axis": {"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "gridColor": GRID, "domain": False},
    "legend": {"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "orient": "top"},
}
TOLD = [
    alt.Tooltip("name:N", title="weight"),
    alt.Tooltip("encoding:N", title="stored as"),
    alt.Tooltip("bits:Q", title="bits per weight", format=".3~g"),
    alt.Tooltip("megabytes:Q", title="MB", format=".3~g"),
    alt.Tooltip("share:Q", title="share of the loss", format=".1%"),
    alt.Tooltip("harm:Q", title="nats per token", format=".2~g"),
    alt.Tooltip("how:N", title="harm is"),
    alt.Tooltip("output_error:Q", title="error of its output", format=".1%"),
    alt.Tooltip("time_share:Q", title="share of a token's time", format=".1%"),
]


def charts(found: Explanation) -> dict[str, dict[str, Any]]:
    """Specifications by name, in the order of the page: ranking, layers, harm, bits, and curve if there is one."""
    rows = [_row(found, part) for part in found.parts]
    made = {
        "ranking": _ranking(rows[:SITES]),
        "layers": _layers(found, rows),
        "harm": _tiles(found, rows, "share", "share of the loss", "%"),
        "bits": _tiles(found, rows, "bits", "bits per weight", ".3~g"),
    }
    if found.curve is not None:
        made["curve"] = _curve(found)
    return {name: chart.configure(**CONFIG).to_dict() for name, chart in made.items()}


def _row(found: Explanation, part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "label": label(part),
        "layer": part.layer,
        "component": part.component,
        "encoding": part.encoding,
        "bits": round(part.bits, 3),
        "megabytes": part.bytes / 1e6,
        "harm": part.harm,
        "share": found.share(part.harm),
        "how": "measured" if part.measured else "expected",
        "output_error": part.output_error,
        "time_share": part.time_share,
    }


def _how() -> alt.Color:
    scale = alt.Scale(domain=["measured", "expected"], range=[MEASURED, EXPECTED])
    return alt.Color("how:N", scale=scale, legend=alt.Legend(title="harm is"))


def _ranking(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """The worst weights, one bar each."""
    y = alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=190, ticks=False))
    room = alt.Scale(domainMax=ROOM * max(r["share"] for r in rows), nice=False)  # for the last figure
    x = alt.X("share:Q", title="share of the loss", axis=alt.Axis(format="%", tickCount=5), scale=room)
    base = alt.Chart(alt.Data(values=rows), height=ROW * len(rows)).encode(y=y, x=x)
    bars = base.mark_bar(cornerRadiusEnd=2, height=ROW - 7).encode(color=_how(), tooltip=TOLD)
    # the text stands behind its bar, on the side that a bar below zero leaves free
    said = base.mark_text(align="left", dx=4, color=INK).encode(
        x=alt.X("end:Q"), text=alt.Text("share:Q", format=".2~p")
    )
    return (bars + said.transform_calculate(end="max(0, datum.share)")).properties(width="container")


def _layers(found: Explanation, rows: list[dict[str, Any]]) -> alt.Chart:
    """The harm in each layer, by component."""
    components = [c for c in found.components if any(r["component"] == c for r in rows)]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(components))]
    legend = alt.Legend(title=None, columns=3, labelLimit=130)
    return (
        alt.Chart(alt.Data(values=rows), width="container", height=240)
        .mark_bar()
        .encode(
            x=_layer_axis(found),
            y=alt.Y("share:Q", title="share of the loss", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color("component:N", scale=alt.Scale(domain=components, range=colours), legend=legend),
            order=alt.Order("rank:Q"),
            tooltip=TOLD,
        )
        .transform_calculate(rank=f"indexof({components!r}, datum.component)")
    )


def _tiles(found: Explanation, rows: list[dict[str, Any]], field: str, title: str, form: str) -> alt.Chart:
    """Layers across, components down, one tile for each weight."""
    legend = alt.Legend(title=title, format=form, gradientLength=180, gradientThickness=10)
    scale = alt.Scale(scheme="blues", domainMin=0, clamp=True)
    y = alt.Y("component:N", sort=list(found.components), title=None, axis=alt.Axis(labelLimit=140, ticks=False))
    return (
        alt.Chart(alt.Data(values=rows), width="container", height=ROW * len(found.components))
        .mark_rect(stroke="white", strokeWidth=1)
        .encode(
            x=_layer_axis(found),
            y=y,
            color=alt.Color(f"{field}:Q", scale=scale, legend=legend),
            tooltip=TOLD,
        )
    )


def _layer_axis(found: Explanation) -> alt.X:
    axis = alt.Axis(labelAngle=0, labelOverlap="greedy", ticks=False, grid=False)
    return alt.X(
        "layer:O", sort=list(found.layers), scale=alt.Scale(domain=list(found.layers)), title="layer", axis=axis
    )


def _curve(found: Explanation) -> alt.LayerChart:
    """Size against KL: the best that is expected at each size, and the artifact. Sizes and losses that are far from its
    own are left out."""
    assert found.curve is not None
    own, best = found.curve.artifact, "best spending, expected"
    weights = [(own.kl, "this artifact, expected"), (found.curve.weights_kl, "its weights, measured")]
    dots = [*weights, (found.loss.kl.value, "all of it, measured")] if found.activations else weights
    line = [{"megabytes": p.bytes / 1e6, "kl": p.kl, "what": best} for p in near(found.curve)]
    points = [{"megabytes": own.bytes / 1e6, "kl": kl, "what": what} for kl, what in dots if kl > 0]
    shown = list(dict.fromkeys([best, *(what for _, what in dots)]))
    colour = alt.Color(
        "what:N",
        scale=alt.Scale(domain=shown, range=[COLOURS[0], COLOURS[1], COLOURS[5], INK][: len(shown)]),
        legend=alt.Legend(title=None, columns=2, symbolType="circle", labelLimit=220),
    )
    axis = alt.Axis(format="~r", values=[digit * 10.0**i for i in range(-6, 4) for digit in (1, 3)])
    x = alt.X("megabytes:Q", title="model file (MB)", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=8))
    y = alt.Y("kl:Q", title="KL to the original (nats per token)", scale=alt.Scale(type="log"), axis=axis)
    told = [
        alt.Tooltip("what:N", title="what"),
        alt.Tooltip("megabytes:Q", title="MB", format=".4~g"),
        alt.Tooltip("kl:Q", title="nats per token", format=".3~g"),
    ]
    curve = alt.Chart(alt.Data(values=line)).mark_line(point=alt.OverlayMarkDef(size=18), interpolate="step-after")
    marks = alt.Chart(alt.Data(values=points)).mark_point(size=110, filled=True, opacity=1, stroke="white")
    parts = [c.encode(x=x, y=y, color=colour, tooltip=told) for c in (curve, marks)]
    return alt.LayerChart(layer=parts).properties(width="container", height=320)


def near(curve: Curve) -> list[Point]:
    """Up to twice the artifact's size, and not so good that no measurement could tell."""
    own = curve.artifact
    return [p for p in curve.points if p.bytes <= 2 * own.bytes and p.kl > own.kl / FAR]

"""An explanation as one HTML file that needs nothing else: charts, tables and their scripts are in it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from drawplate.evaluate.statistics import Estimate
from drawplate.explain import words
from drawplate.explain.charts import SITES, charts
from drawplate.explain.report import Explanation
from drawplate.planning import size

TEMPLATE = "page.html"


def page(found: Explanation) -> str:
    """The file's text: about 1 MB, nearly all of it the charts' library."""
    import vl_convert

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": words.percent, "size": size, "figure": figure}
    template = environment.from_string(files("drawplate.explain").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        found=found,
        charts=charts(found),
        titles=_titles(found),
        shown=SITES,
        scripts=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # its stub forgot the default
        embed={"actions": False, "renderer": "svg"},
    )


def figure(value: float | Estimate | None) -> str:
    """Three digits; an estimate with its error.

    >>> figure(0.39712), figure(Estimate(0.0412, 0.0031, 4)), figure(None)
    ('0.397', '0.0412 ± 0.0031', '')
    """
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, (int, float)) else f"{value.value:.3g}" + _error(value)


def _error(estimate: Estimate) -> str:
    return "" if estimate.error is None else f" ± {estimate.error:.2g}"


def _titles(found: Explanation) -> dict[str, Any]:
    titles = {
        "ranking": words.ranked_title(found),
        "layers": words.layers_title(found),
        "harm": "Where the harm is: layers across, weights down",
        "bits": words.bits_title(found),
    }
    return titles | ({"curve": words.curve_title(found)} if found.curve is not None else {})

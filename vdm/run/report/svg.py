"""Figures as inline SVG that takes its colours from the page, in light and dark mode.

Matplotlib draws with one placeholder colour for each role; in the SVG they become the page's CSS
variables. Text stays text, in the page's own font. Ids are made unique to the page.
"""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

NUM_SERIES = 6
SERIES = tuple(f"#0{i}0a0b" for i in range(1, NUM_SERIES + 1))
INK, MUTED, RULE, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
VARIABLES = {
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, start=1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
}
WIDTH, HEIGHT = 4.4, 2.9  # inches; at 72 to the inch about the width of a phone
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vdm",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called $x$
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.facecolor": PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fancybox": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "text.color": INK,
}


def draw(name: str, label: str, paint: Callable[[Axes], None], *, height: float = HEIGHT) -> Markup:
    """Return the SVG of a figure that `paint` fills the axes of.

    `name` is unique on its page; `label` describes it for readers who do not see it.
    """
    with rc_context(STYLE), warnings.catch_warnings():
        # For a run's name, which the reader's fonts can show.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        buffer = io.StringIO()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Markup(_of_the_page(buffer.getvalue(), name, label))


def in_legend(name: str) -> str:
    """Return a name for a legend: Matplotlib leaves out names that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _of_the_page(document: str, name: str, label: str) -> str:
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"'[^']*'(, [^;\"]*)?sans-serif", "inherit", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))

    def own_id(match: re.Match) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', own_id, svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    # The page sizes it.
    found = re.search(r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>', svg)
    assert found is not None
    opening = f'<svg viewBox="{found[1]}" role="img" aria-label="{html.escape(label)}">'
    svg = opening + svg[found.end() :]
    return re.sub(r"\n\s*", "\n", svg.replace("xlink:href", "href")).strip()

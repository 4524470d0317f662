"""Pictures by matplotlib, drawn without a display, as files (whole or not at all) or as part of a page."""

import io
import re
import warnings
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from recbole_rella.files import replacing


def new_figure(width, height):
    """An empty figure of a size in inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Write a figure as PNG. Its text is drawn letter by letter, dollar signs too; a box stands for what the font lacks."""
    with replacing(Path(path)) as temporary:
        _save_as_it_is(figure, temporary, dpi=150, format="png")


# A colour that nothing else has: in a page it is that of the text around it, light or dark.
_INK = "#010203"


def as_svg(figure, name):
    """A figure as part of an HTML page, in the colours of the text around it.

    Args:
        figure (matplotlib.figure.Figure): of `new_figure`; is changed.
        name (str): of the figure in its page; makes its parts' names its own.

    Returns:
        str: an svg element.
    """
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(color=_INK, labelcolor=_INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(_INK)
        if axes.get_legend() is not None:
            axes.get_legend().get_frame().set_alpha(0)
    for text in figure.findobj(Text):
        text.set_color(_INK)
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        _save_as_it_is(figure, written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Names within a page are its own.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    size = f'style="max-width: {6 * figure.get_figwidth():.1f}rem"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}" {size}', svg, count=1)


def _save_as_it_is(figure, to, **options):
    """Save a figure, in which no text between dollar signs is a formula but the powers that matplotlib writes at an axis."""
    texts = figure.findobj(Text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        for text in texts:
            text.set_parse_math(False)
        figure.draw_without_rendering()  # writes the numbers at the axes
        for text in texts:
            text.set_parse_math(text.get_text().startswith(r"$\mathdefault{"))
        figure.savefig(to, **options)

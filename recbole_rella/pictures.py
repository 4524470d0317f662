"""Pictures by matplotlib, drawn without a display and written whole or not at all."""

import warnings
from pathlib import Path

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
    with warnings.catch_warnings(), replacing(Path(path)) as temporary:
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        _draw_as_it_is(figure)
        figure.savefig(temporary, dpi=150, format="png")


def _draw_as_it_is(figure):
    """Take no text between dollar signs for a formula, but for the powers that matplotlib writes at a logarithmic axis."""
    texts = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
    figure.draw_without_rendering()  # writes the numbers at the axes
    for text in texts:
        text.set_parse_math(text.get_text().startswith(r"$\mathdefault{"))

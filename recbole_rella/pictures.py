"""Pictures by matplotlib, drawn without a display and written whole or not at all."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recbole_rella.files import replacing


def new_figure(width, height):
    """An empty figure of a size in inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Write a figure as PNG."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150, format="png")

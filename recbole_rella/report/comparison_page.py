"""report.html of models side by side, and the page of a sweep."""

import numpy as np

from recbole_rella.report.page import Section, write_page
from recbole_rella.report.sections import curves, sections_by_part

# Lines that can still be told from each other.
_SHOWN = 6


def write_comparison_page(path, heading, cells, chart, labels, scores, lengths, popularity):
    """Write the page of a comparison.

    Args:
        path (pathlib.Path): of it.
        heading (str): of its table in Markdown: a title, and a paragraph.
        cells (pandas.DataFrame): the table, of text; the best of a column between asterisks.
        chart (matplotlib.figure.Figure): of the AUCs.
        labels (numpy.ndarray): of the test rows, 0 or 1, [n].
        scores (dict): model -> scores of its first seed, float [n]; the best model first.
        lengths, popularity (numpy.ndarray): int [n], as for `sections_by_part`.
    """
    sections = [Section("Models", figure=chart, table=cells)]
    if len(np.unique(labels)) == 2 and scores:
        shown = dict(list(scores.items())[:_SHOWN])
        text = (
            "The first seed of each model." if len(shown) == len(scores) else f"The {_SHOWN} models of the highest AUC, first seed."
        )
        sections += [*curves(labels, shown, text), *sections_by_part(labels, shown, lengths, popularity)]
    title, _, lead = heading.partition("\n\n")
    write_page(path, title.removeprefix("# "), lead, sections)


def write_sweep_page(path, heading, cells, chart):
    """Write the page of a sweep; the arguments are those of `write_comparison_page`."""
    title, _, lead = heading.partition("\n\n")
    write_page(path, title.removeprefix("# "), lead, [Section("Curves", figure=chart, table=cells)])

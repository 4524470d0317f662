"""Pages of several runs: report.html of models side by side, and that of a sweep."""

import numpy as np

from recbole_rella.report.page import write_page
from recbole_rella.report.sections import curves, sections_by_part

# Lines that can still be told from each other.
_SHOWN = 6


def sections_of_models(labels, scores, lengths, popularity):
    """How models score the same rows.

    Args:
        labels (numpy.ndarray): of the test rows, 0 or 1, [n].
        scores (dict): model -> scores of its first seed, float [n]; the best model first.
        lengths, popularity (numpy.ndarray): int [n], as for `sections_by_part`.

    Returns:
        list of Section: empty where the rows have one label alone.
    """
    if len(np.unique(labels)) < 2 or not scores:
        return []
    shown = dict(list(scores.items())[:_SHOWN])
    text = "The first seed of each model." if len(shown) == len(scores) else f"The {_SHOWN} models of the highest AUC, first seed."
    return [*curves(labels, shown, text), *sections_by_part(labels, shown, lengths, popularity)]


def write_page_below(heading, path, sections):
    """Write a page with the heading that its table has in Markdown.

    Args:
        heading (str): a title, and a paragraph.
        path (pathlib.Path), sections (list of Section): as for `write_page`.
    """
    title, _, lead = heading.partition("\n\n")
    write_page(path, title.removeprefix("# "), lead, sections)

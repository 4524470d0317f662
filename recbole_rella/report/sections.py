"""Parts that the page of a run and that of a comparison have in common."""

from recbole_rella.report.charts import by_part, calibration, roc
from recbole_rella.report.page import Section


def curves(labels, scores, text=""):
    """ROC and calibration.

    Args:
        labels (numpy.ndarray), scores (dict): as for `roc`.
        text (str): what is to be said of the models.

    Returns:
        list of Section: two.
    """
    calibrated = "Rows in ten parts by their score; a point on the line is right on average."
    return [
        Section("ROC", text, roc(labels, scores)),
        Section("Calibration", f"{calibrated} {text}".strip(), calibration(labels, scores)),
    ]


def sections_by_part(labels, scores, lengths, popularity):
    """AUC by the length of the history and by the popularity of the item.

    Args:
        labels (numpy.ndarray), scores (dict): as for `roc`.
        lengths (numpy.ndarray): earlier rows of the row's user, int [n].
        popularity (numpy.ndarray): training rows of the row's item, int [n].

    Returns:
        list of Section: two.
    """
    found = []
    for name, text, values in (
        ("History length", "Test rows by how many earlier rows their user has.", lengths),
        ("Item popularity", "Test rows by how many training rows their item has.", popularity),
    ):
        figure, table = by_part(labels, scores, values)
        found.append(Section(name, f"{text} AUC with 95% intervals.", figure, table))
    return found

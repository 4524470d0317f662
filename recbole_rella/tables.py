"""Text of the data on pages of Markdown and LaTeX: tables, and blocks of text. Whatever it holds is shown as it is."""

import re


def _one_line(text):
    return re.sub(r"\s+", " ", str(text)).strip()


def markdown(cells):
    """A table in Markdown.

    Args:
        cells (pandas.DataFrame): of text, each of which becomes one line.

    Returns:
        str: the table, without a line break at its end.
    """

    def escaped(text):
        return re.sub(r"[\\|]", r"\\\g<0>", _one_line(text))

    return cells.map(escaped).rename(columns=escaped).to_markdown(index=False, disable_numparse=True)


def fenced(text):
    """A text in Markdown, letter by letter, between two lines of backquotes that it does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def latex(cells, bold):
    """A table in LaTeX, for the packages booktabs and amsmath.

    Args:
        cells (pandas.DataFrame): of text, each of which becomes one line.
        bold (pandas.DataFrame): which cells are bold, bool, of the same shape.

    Returns:
        str: a tabular environment; the first and the last column are aligned to the left, those between to the right.
    """
    columns = "l" + "r" * (len(cells.columns) - 2) + "l"
    style = cells.map(_one_line).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text = style.apply(lambda _: bold.map({True: "textbf: --rwrap;", False: ""}.get), axis=None).to_latex(
        hrules=True, column_format=columns
    )
    # What LaTeX has in formulas alone, where fonts lack it otherwise; nothing but cells holds any of them.
    for sign, formula in {"±": r"$\pm$", "<": "$<$", ">": "$>$"}.items():
        text = text.replace(sign, formula)
    # At the beginning of a line these would belong to the command before it.
    return re.sub(r"^(?=[\[*])", "{}", text, flags=re.MULTILINE)

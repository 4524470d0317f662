"""Pictures draw the text of the data letter by letter."""

import warnings

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from recbole_rella.pictures import new_figure, save_figure

TITLES = [
    "Ca$$h Machine",
    "Ke$ha Ti$k Tok",
    "$x^2$",
    r"a\$b$c",
    "$",
    r"\frac{$",
    "$\\nonsense{$",
    "100% _{#}&~^",
    "星 😀 \x00\x07",
    "{{ 7 }}",
    "",
]


def drawn(texts, path):
    """Bars with names, a title, a legend and an annotation."""
    figure = new_figure(5, 4)
    axes = figure.add_subplot()
    axes.barh(range(len(texts)), np.arange(len(texts)), label=texts[0] or "none")
    axes.set_yticks(range(len(texts)), texts)
    axes.set_title(texts[0])
    axes.set_xlabel(texts[-1])
    axes.annotate(texts[0], (0, 0))
    axes.legend(title=texts[0])
    figure.suptitle(texts[0])
    save_figure(figure, path)
    return figure


@pytest.mark.parametrize("title", TITLES)
def test_text_is_drawn_as_it_is(title, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = drawn([title, "between", title], tmp_path / "a.png")
    shown = [text for text in figure.findobj(Text) if title and text.get_text() == title]
    assert len(shown) >= (8 if title else 0) and not any(text.get_parse_math() for text in shown)
    assert image.imread(tmp_path / "a.png").std() > 0


def test_dollars_are_seen(tmp_path):
    """A formula would be drawn without them, in another font."""
    for name, text in (("a", "Ke$ha Ti$k"), ("b", r"Ke\$ha Ti\$k")):
        drawn([text], tmp_path / f"{name}.png")
    one, two = (image.imread(tmp_path / f"{name}.png") for name in "ab")
    assert one.shape == two.shape and not np.array_equal(one, two)
    figure = new_figure(3, 1)
    label, plain = (figure.text(0.1, 0.5, text) for text in ("Ke$ha Ti$k", "KeSha TiSk"))
    save_figure(figure, tmp_path / "c.png")
    assert label.get_window_extent().width == pytest.approx(plain.get_window_extent().width, rel=0.05)


def test_powers_at_an_axis_stay_powers(tmp_path):
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    axes.plot([1, 10, 1000], [1, 2, 3], label="$a$")
    axes.set_xscale("log")
    axes.legend()
    save_figure(figure, tmp_path / "a.png")
    powers = [text for text in axes.get_xticklabels() if text.get_text()]
    assert powers and all(text.get_parse_math() and text.get_text().startswith("$") for text in powers)
    assert not axes.get_legend().get_texts()[0].get_parse_math()

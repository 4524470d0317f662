"""A page of HTML that stands alone: no server, nothing from elsewhere, readable in light and in dark. Jinja fills it in."""

from dataclasses import dataclass, field

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from recbole_rella.files import write_text
from recbole_rella.pictures import as_svg
from recbole_rella.version import VERSION


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page.

    Attributes:
        name (str): its heading.
        text (str): a paragraph below it.
        figure (Figure or None): a chart.
        table (pandas.DataFrame or None): of text.
        bold (pandas.DataFrame or None): which of its cells are bold, bool, of the same shape; none of them by default.
        unfolded (list of tuple): (line, text) pairs, each a line that unfolds to a text, which is shown letter by letter.
    """

    name: str
    text: str = ""
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    bold: pd.DataFrame | None = None
    unfolded: list = field(default_factory=list)

    @property
    def cells(self):
        """The lines of the table, list of lists of (text, whether it is bold)."""
        bold = pd.DataFrame(False, self.table.index, self.table.columns) if self.bold is None else self.bold
        return [list(zip(*line)) for line in zip(self.table.to_numpy().tolist(), bold.to_numpy().tolist())]

    @property
    def anchor(self):
        """What links within the page lead to."""
        return "-".join(self.name.lower().split())


def write_page(path, title, lead, sections):
    """Write a page.

    Args:
        path (pathlib.Path): of it.
        title (str), lead (str): what it is about, in a line and in a paragraph.
        sections (list of Section): in their order.
    """
    environment = Environment(
        loader=PackageLoader("recbole_rella.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    charts = {part.anchor: Markup(as_svg(part.figure, part.anchor)) for part in sections if part.figure is not None}
    page = environment.get_template("page.jinja").render(title=title, lead=lead, sections=sections, charts=charts, version=VERSION)
    write_text(path, page)

"""The picture and the page of the retrieval benchmark."""

from benchmarks.speed.measure import FOLDER
from recbole_rella.files import replacing
from recbole_rella.pictures import new_figure, save_figure

_NAMES = ["ours", "FAISS per row", "paper's walk", "paper's way"]
_COLOURS = dict(zip(_NAMES, ["#0072B2", "#E69F00", "#009E73", "#D55E00"]))
_LABELS = {"paper's walk": "paper's walk, its sorting not counted", "paper's way": "paper's way, sorting counted"}


def _memory(case, name):
    """What a candidate takes and the vectors that all need, MiB, or None."""
    record = case["candidates"].get(name)
    return None if record is None or record["peak_mib"] is None else record["peak_mib"] + case["vectors, MiB"]


def _speed(case, name):
    return case["candidates"][name]["rows a second"] if name in case["candidates"] else None


def picture(record, path):
    """Rows a second and memory against the length of the histories and the catalogue, as PNG."""
    figure = new_figure(10, 7)
    panels = figure.subplots(2, 2)
    for column, (sweep, key, label) in enumerate(
        [("history", "history", "behaviours in the history"), ("catalogue", "items", "items in the catalogue")]
    ):
        for panel, value, title in zip(panels[:, column], (_speed, _memory), ("rows a second", "memory, vectors included (MiB)")):
            for name in _NAMES:
                # The walk's own memory is that of the matrix, which the sorting made.
                if name == "paper's walk" and value is _memory:
                    continue
                points = [(case[key], value(case, name)) for case in record[sweep] if value(case, name) is not None]
                if points:
                    panel.plot(*zip(*points), marker="o", color=_COLOURS[name], label=_LABELS.get(name, name))
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel=title)
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def _table(cases):
    lines = [
        "| history | items | rows (of a user) | ours, rows/s | FAISS per row | paper's walk | paper's way | sorting once, s | "
        "ours, MiB | paper's, MiB | vectors, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        candidates = case["candidates"]
        cells = [f"{case['history']:,}", f"{case['items']:,}", f"{case['rows']:,} ({case['rows of a user']})"]
        cells.append(f"**{_speed(case, 'ours'):,.0f}**")
        for name in _NAMES[1:]:
            speed = _speed(case, name)
            cells.append("-" if speed is None else f"{speed:,.0f} ({candidates[name]['times ours']:.1f}x)")
        way = candidates.get("paper's way")
        cells.append(f"{way['of which sorting once']:.2f}" if way else "-")
        for found in (candidates["ours"], way):
            cells.append("-" if found is None or found["peak_mib"] is None else f"{found['peak_mib']:,.0f}")
        cells.append(f"{case['vectors, MiB']:,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _verdict(record):
    """How ours and the paper's way compare at 4,000 items and histories of 300, whose sorting is spread over all rows."""
    case = next(c for c in record["history"] if (c["history"], c["items"]) == (300, 4000))
    ours, walk, way = (case["candidates"][name] for name in ("ours", "paper's walk", "paper's way"))
    a_row, walked, sorting = ours["seconds"] / case["rows"], walk["seconds"] / case["rows"], way["of which sorting once"]
    rows = ", ".join(f"{n:,} rows {(sorting / n + walked) / a_row:.1f} times" for n in (256, 1024, 8192, 97_002))
    lines = [
        f"At 4,000 items and histories of 300, {case['rows of a user']} rows a user, a row takes {1e6 * a_row:.1f} microseconds "
        f"and a row of the paper's walk {1e6 * walked:.1f}; its sorting takes {sorting:.2f} seconds, once.",
        f"Measured over {case['rows']:,} rows, ours is {way['times ours']:.1f} times as fast with the sorting counted, "
        f"{walk['times ours']:.1f} times without.",
        f"For other numbers of rows the same figures give: {rows}.",
    ]
    if 20 * a_row > walked:
        most = sorting / (20 * a_row - walked)
        lines.append(f"So it is 20 times as fast, the sorting counted, up to {most:,.0f} rows, not beyond.")
    bare = case["candidates"].get("bare products")
    if bare:
        lines.append(
            f"The bare matrix products take {1e6 * bare['seconds'] / case['rows']:.1f} microseconds a row: "
            f"20 times the walk alone would be {1e6 * walked / 20:.1f}."
        )
    return lines


def write_report(name, record):
    """Write results/speed/<name>.png and .md.

    Args:
        name (str): of the files.
        record (dict): what `benchmarks.speed.retrieval` has measured.
    """
    picture(record, FOLDER / f"{name}.png")
    machine = record["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items() if version)
    lines = [
        "# Retrieval",
        "",
        f"`{record['command']}`. {machine['cpu']}, {machine['cores']} cores, {machine['memory, GiB']} GiB; {versions}.",
        f"K = {record['K']}, vectors of {record['dimension']} numbers. Medians of runs in turn; all found behaviours are equally",
        "close to the target (to 1e-6). A ratio tells how many times as long as ours a candidate takes.",
        "",
        "- FAISS per row: an IndexFlatIP of the row's history is built and searched.",
        "- The paper's way, rewritten: the items' similarity matrix is made and sorted by argsort, once a data set; then a row",
        "  walks down its target's order until K items of its history have come. The walk is shown without and with the sorting.",
        "  It is left out where its matrix was too large for this run, and where items repeat, which it cannot represent.",
        "- MiB: taken at the peak beyond what was held before; the vectors are held by everybody. The paper's counts its matrix.",
        "",
        *_verdict(record),
        "",
        f"![Scaling]({name}.png)",
        "",
    ]
    for sweep, title in (("history", "Histories"), ("catalogue", "Catalogue"), ("rows of a user", "Rows asked of one user")):
        lines += [f"## {title}", "", *_table(record[sweep]), ""]
    many = record["many rows"]
    lines += [f"## {many['rows'] / 1e6:.0f} million rows", "", "| figure | value |", "|---|---|"]
    lines += [f"| {key} | {round(value, 1):,} |" for key, value in many.items() if value is not None]
    lines += ["", "Synthetic rows in memory; `python -m benchmarks.speed.reading` measures the way from atomic files to there.", ""]
    with replacing(FOLDER / f"{name}.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")

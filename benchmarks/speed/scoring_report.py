"""Pictures of rows a second: against the shown behaviours, the rows scored together, and the size of the LLM."""

from recbole_rella.pictures import new_figure, save_figure

AS_STORED = "as stored"  # where a candidate's dtype stands in its name: it computes by a file's own quantized weights
_COLOURS = {
    "ours": "#0072B2",
    "CrossEncoder": "#E69F00",
    "plain loop": "#009E73",
    "paper's way": "#D55E00",
    "vLLM": "#CC79A7",
    "llama.cpp": "#56B4E9",
}


def curves(record):
    """What is drawn.

    Args:
        record (dict): what `benchmarks.speed.scoring` has measured.

    Returns:
        dict: (shape, kind) -> {"K": cases of one number of rows, "rows": cases of one K}, in ascending order; kinds of which
        neither varies are left out.
    """
    found = {}
    for case in record["cases"].values():
        found.setdefault((case["shape"], case["kind"]), []).append(case)
    drawn = {}
    for key, cases in found.items():
        # The number of rows that most values of K have, and the other way round.
        rows, k = (max(values, key=values.count) for values in ([c["rows"] for c in cases], [c["K"] for c in cases]))
        by_k = sorted((case for case in cases if case["rows"] == rows), key=lambda case: case["K"])
        by_rows = sorted((case for case in cases if case["K"] == k), key=lambda case: case["rows"])
        if len(by_k) > 1 or len(by_rows) > 1:
            drawn[key] = {"K": by_k, "rows": by_rows}
    return drawn


def picture(record, path):
    """Draw the curves of a record as PNG; none is written where nothing varies."""
    drawn = curves(record)
    if not drawn:
        return
    figure = new_figure(10, 3.6 * len(drawn))
    panels = figure.subplots(len(drawn), 2, squeeze=False)
    for line, ((shape, kind), sweeps) in zip(panels, drawn.items()):
        for panel, (swept, other) in zip(line, (("K", "rows"), ("rows", "K"))):
            cases = sweeps[swept]
            for name in cases[0]["candidates"]:
                points = [(case[swept], case["candidates"][name]["rows a second"]) for case in cases]
                panel.plot(*zip(*points), marker="o", color=_COLOURS.get(name), label=name)
            label = {"K": "behaviours shown (K)", "rows": "rows scored together"}[swept]
            panel.set(
                xscale="log",
                yscale="log",
                xlabel=label,
                ylabel="rows a second",
                title=f"{shape}, {kind}, {other} = {cases[0][other]}",
            )
            ticks = [case[swept] for case in cases]
            panel.set_xticks(ticks, ticks)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def dtype_of(candidate):
    """The dtype that a candidate's name ends with, as `ours, float32` does; or AS_STORED."""
    return candidate.rpartition(", ")[2]


def picture_of_sizes(record, path):
    """Draw what `benchmarks.speed.engines` has measured of several LLMs as PNG: a panel a dtype, with what is as stored in each."""
    of_size = sorted(record["cases"].values(), key=lambda case: case["parameters of layers"])
    names = dict.fromkeys(name for case in of_size for name in case["candidates"])
    dtypes = [dtype for dtype in dict.fromkeys(map(dtype_of, names)) if dtype != AS_STORED]
    figure = new_figure(5 * len(dtypes), 3.6)
    for panel, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes):
        for name in [name for name in names if dtype_of(name) in (dtype, AS_STORED)]:
            having = [case for case in of_size if name in case["candidates"]]
            points = [(case["parameters of layers"] / 1e6, case["candidates"][name]["rows a second"]) for case in having]
            candidate = name.rpartition(", ")[0]
            panel.plot(*zip(*points), marker="o", color=_COLOURS[candidate], label=candidate)
        panel.set(xscale="log", yscale="log", xlabel="million parameters of the layers", ylabel="rows a second", title=dtype)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    save_figure(figure, path)

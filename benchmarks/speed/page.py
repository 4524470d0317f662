"""results/speed/README.md from the JSON files beside it."""

import json

from benchmarks.speed.measure import FOLDER
from recbole_rella.files import replacing

_INTRO = """# Speed and memory

By `{command}`, candidates in turn in one process, medians. Figures depend on the machine; ratios were measured side by side.
What each candidate is stands at the top of its module in [benchmarks/speed](../../benchmarks/speed).

{machine}
"""


def _machine(record):
    found = record["machine"]
    device = found["gpu"] or f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{device}, {found['memory, GiB']} GiB, Python {found['python']}, {versions}."


def _row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _memory(record):
    return "-" if record["peak_mib"] is None else f"{record['peak_mib']:.0f}"


def _picture(name, words):
    return [f"![{words}]({name}.png)", ""] if (FOLDER / f"{name}.png").is_file() else []


def _scoring(record, name):
    lines = [
        "## Scoring" + (" with long histories, against K and rows" if name == "scoring-sweep" else ""),
        "",
        f"`{record['command']}`. Random Llamas named by the parameters of their layers, {record['dtype'].removeprefix('torch.')}, "
        f"prompts of ml-100k's test rows as texts. This machine multiplies matrices at {record['matrix peak, GFLOP/s']:.0f} "
        "GFLOP/s. Sharing is all tokens over those that are computed, of these rows and of a whole evaluation batch of 4,096: with "
        "less sharing than these rows have, ours gains less. `slower` is how many times ours the seconds are.",
        "",
        _row("case", "rows", "tokens a row", "sharing", "candidate", "rows/s", "slower", "peak MiB", "score difference"),
        _row(*["---"] * 9),
    ]
    for case in record["cases"].values():
        whole = f" ({case['sharing of a whole batch']:.2f})" if "sharing of a whole batch" in case else ""
        about = [
            f"{case['shape']}, {case['kind']}, K={case['K']}",
            case["rows"],
            f"{case['tokens a row']:.0f}",
            f"{case['tokens / computed tokens']:.2f}{whole}",
        ]
        for candidate, found in case["candidates"].items():
            speed = (
                f"{found['rows a second']:.1f}",
                f"{found['times ours']:.2f}",
                _memory(found),
                f"{found['largest difference']:.0e}",
            )
            lines.append(_row(*about, candidate, *speed))
            about = [""] * 4
    reached = ", ".join(f"{name}: {case['of matrix peak']:.0%}" for name, case in record["cases"].items())
    return [
        *lines,
        "",
        f"Of the matrix peak, our scoring reaches {reached}.",
        "",
        *_picture(name, "Rows a second against K and against rows"),
    ]


def _engines(record, name):
    of = "against the size of the LLM" if record["llm"] == "sizes" else record["llm"]
    lines = [
        f"## Beside vLLM: {of}",
        "",
        f"`{record['command']}`. vLLM {record['machine']['versions'].get('vllm', '')} in processes of its own, prefix caching on, "
        "its cache empty before each call; the same prompt ids, idle otherwise. `slower` is how many times ours of the same dtype "
        "(of the first, for weights as stored) the seconds are; the difference is to our scores in float32.",
        "",
        _row("case", "rows", "tokens a row", "candidate", "rows/s", "slower", "score difference"),
        _row(*["---"] * 7),
    ]
    for told, case in record["cases"].items():
        about = [told, case["rows"], f"{case['tokens a row']:.0f}"]
        for candidate, found in case["candidates"].items():
            speed = f"{found['rows a second']:.2f}", f"{found['times ours']:.2f}", f"{found['largest difference']:.0e}"
            lines.append(_row(*about, candidate, *speed))
            about = [""] * 3
    return [*lines, "", *_picture(name, "Rows a second against the size of the LLM")]


def _training(record, _):
    lines = [
        "## Tuning",
        "",
        f"`{record['command']}`. The {record['shape']} LLM with LoRA (r 8, q_proj and v_proj), {record['steps']} steps of "
        f"{record['samples a step']} samples, recent and retrieved mixed, {record['tokens a sample']:.0f} tokens each.",
        "",
        _row("candidate", "samples/s", "slower", "peak MiB", "largest difference of a step's loss"),
        _row(*["---"] * 5),
    ]
    for candidate, found in record["candidates"].items():
        speed = f"{found['samples a second']:.2f}", f"{found['times ours']:.2f}", _memory(found)
        lines.append(_row(candidate, *speed, f"{found['largest difference of losses']:.0e}"))
    return [*lines, ""]


def _reading(record, _):
    own = record["RecBole's own reading"]
    lines = [
        "## Reading",
        "",
        f"`{record['command']}`: a data set of {record['rows']:,} rows ({record['data set']}; {record['users']:,} users, "
        f"{record['items']:,} items, {record['files, MiB']:,.0f} MiB of files), from its atomic files to retrieved behaviours: "
        f"{record['seconds']:.0f} seconds, and at most {record['peak_mib'] / 1024:.1f} GiB resident, libraries included. "
        f"The rows asked have {record['mean history of the rows asked']:,.0f} behaviours on average.",
        "",
        _row("stage", "seconds", "resident at most, MiB"),
        _row(*["---"] * 3),
    ]
    lines += [_row(name, f"{stage['seconds']:.1f}", f"{stage['peak_mib']:,.0f}") for name, stage in record["stages"].items()]
    if own:
        sizes = (f"{own[name]['seconds']:.1f} seconds and {_memory(own[name])} MiB" for name in ("RecBole's", "ours"))
        lines += ["", "RecBole's own reading of the same files takes {}, ours {}; all values are equal.".format(*sizes)]
    return [*lines, ""]


def _section(title, text, columns, cases):
    """A heading, what was measured, and a table of cases, each a name and a dict of the columns behind the first."""
    rows = [_row(name, *(f"{found[column]:,.4g}" for column in columns[1:])) for name, found in cases.items()]
    return [f"## {title}", "", text, "", _row(*columns), _row(*["---"] * len(columns)), *rows, ""]


def _precision(record, _):
    text = (
        f"`{record['command']}`. {record['rows']} rows, {record['tokens a row']:.0f} tokens each, untuned; differences of P(yes) "
        "to the first. Each format went through all rows before the next one: the seconds are rough."
    )
    columns = ["format", "auc", "logloss", "mean difference", "largest difference", "seconds"]
    return _section(f"Precision: {record['llm']}", text, columns, record["formats"])


def _layers(record, _):
    text = (
        f"`{record['command']}`. A decoder's gate and up projections in float32; seconds over those of ours, which are one after "
        "the other."
    )
    cases = {name: found["times ours"] for name, found in record["cases"].items()}
    return _section("Products of two weights", text, ["case", *next(iter(cases.values()))], cases)


def _sharing(record, _):
    text = (
        f"`{record['command']}`. Behaviours of all prompts of an evaluation batch over those that are computed, by their order in "
        "a prompt."
    )
    cases = {f"K={k}": found for k, found in record["K"].items()}
    return _section("What retrieved prompts share", text, ["case", *next(iter(cases.values()))], cases)


_PARTS = {
    "scoring": _scoring,
    "engines": _engines,
    "precision": _precision,
    "layers": _layers,
    "sharing": _sharing,
    "training": _training,
    "reading": _reading,
}


def write_page(command):
    """Put the tables of what was measured on one page.

    Args:
        command (str): that measured it.
    """
    lines, machine = [], None
    for part, tables in _PARTS.items():
        for path in sorted([*FOLDER.glob(f"{part}.json"), *FOLDER.glob(f"{part}-*.json")], key=lambda path: path.stem):
            record = json.loads(path.read_text(encoding="utf-8"))
            machine = machine or _machine(record)
            lines += tables(record, path.stem)
            if _machine(record) != machine:
                lines += [f"Measured on: {_machine(record)}", ""]
    if (FOLDER / "retrieval.md").is_file():
        lines += ["## Retrieval and histories", "", "[retrieval.md](retrieval.md)", ""]
    with replacing(FOLDER / "README.md") as temporary:
        temporary.write_text("\n".join([_INTRO.format(command=command, machine=machine), *lines]), encoding="utf-8")

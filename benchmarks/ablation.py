"""The paper's ablation on a data set, and the retrieval encoders: one run a row, one results page.

    python benchmarks/ablation.py [--dataset=ml-100k] [--encoder=<sentence-transformers name or folder> ...] [--key=value ...]

Every other --key=value goes to each run. Rows that were measured before with the same command are kept; delete
results/ablation.json to measure them again. Writes results/ablation.json and results/ablation.md.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
ROWS = ["mixed", "half_mixed", "retrieved_only", "recent_only", "zero_shot_retrieved", "zero_shot_recent"]


def _commands(dataset, encoders, others):
    base = ["python", "run_recbole_rella.py", "--model=ReLLa", f"--dataset={dataset}"]
    for row in ROWS:
        yield row, [*base, f"--config_files=properties/variant/{row}.yaml", *others]
    for encoder in encoders:
        for row in ("mixed", "zero_shot_retrieved"):
            command = [*base, f"--config_files=properties/variant/{row}.yaml", f"--retrieval_encoder={encoder}"]
            yield f"{row}, {Path(encoder).name} encoder", [*command, *others]


def _run(command):
    """Run one row; returns the metrics that its run folder holds."""
    before = set((ROOT / "saved").glob("ReLLa-*"))
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    (folder,) = set((ROOT / "saved").glob("ReLLa-*")) - before
    return json.loads((folder / "metrics.json").read_text())


def _page(dataset, results):
    lines = [
        f"# Ablation on {dataset}",
        "",
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}. One seed a row; test rows are",
        "scored once, the best epoch is chosen on validation.",
        "",
        "| row | valid AUC | test AUC | test LogLoss | best epoch | seconds in all |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        m = row["metrics"]
        epoch = "-" if m["best_epoch"] is None else m["best_epoch"]
        lines.append(
            f"| {name} | {m['valid']['auc']:.4f} | {m['test']['auc']:.4f} | {m['test']['logloss']:.4f} | {epoch} | "
            f"{m['seconds']['total']:.0f} |"
        )
    lines += ["", "Commands:", "", "```"] + [row["command"] for row in results.values()] + ["```", ""]
    return "\n".join(lines)


def main():
    """Run the rows that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--encoder", action="append", default=[], help="besides llm; may be given several times")
    known, others = parser.parse_known_args()
    path = ROOT / "results" / "ablation.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    results = {}
    for name, command in _commands(known.dataset, known.encoder, others):
        text = " ".join(command)
        known_row = earlier.get(name)
        fresh = known_row is None or known_row["command"] != text
        results[name] = {"command": text, "metrics": _run(command)} if fresh else known_row
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**earlier, **results}, indent=1) + "\n")
    (path.parent / "ablation.md").write_text(_page(known.dataset, results))
    print(_page(known.dataset, results))


if __name__ == "__main__":
    main()

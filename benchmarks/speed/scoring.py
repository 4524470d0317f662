"""Rows scored a second: ours, the paper's way, sentence-transformers' CrossEncoder, a plain transformers loop.

    python -m benchmarks.speed.scoring [--sweep | --large] [--repeats=2]

Everybody gets the same texts and the same LLM, tokenizes itself, and must give the same scores. Rows are test rows as they come;
those of --sweep and --large, which are compared over K, have at least 60 behaviours in their history, so that K of them are shown,
whatever K is. The LLM is random: its scores mean nothing, its cost is that of a trained one. Writes results/speed/scoring.json
(scoring-sweep.* and scoring-large.*, with a picture).
"""

import argparse
import tempfile

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers.processors import TemplateProcessing

from benchmarks.speed.measure import FOLDER, in_turn, machine, matrix_peak, write
from benchmarks.speed.scoring_report import picture
from benchmarks.speed.workload import TOP_N, Prompts, make_llm, make_workload
from recbole_rella.llm.packing import prompt_trees
from recbole_rella.llm.scoring import CPU_TOKENS, forward_passes, p_yes, pad

BUDGET = 16_384  # eval_micro_tokens as shipped
COMMAND = "python -m benchmarks.speed.scoring"
LEAST = 60  # the largest K
# Which behaviours are shown, how many, rows.
SMALL = [("retrieved", 15, 120), ("retrieved", 30, 120), ("top-N", 15, TOP_N)]
SWEEP = [*(("retrieved", k, 32) for k in (5, 15, 30, 60)), ("retrieved", 15, 8), ("retrieved", 15, 120)]
LARGE = [
    *((kind, k, 120) for kind in ("retrieved", "recent") for k in (5, 15, 30, 60)),
    *(("retrieved", 15, rows) for rows in (8, 32, 480)),
    *(("top-N", 15, rows) for rows in (TOP_N, 4 * TOP_N)),
]


def ours(work):
    """Scores by recbole_rella, float [n]."""
    ids = work.ids()
    lengths = torch.tensor([len(i) for i in ids])
    return p_yes(work.llm, pad(ids), lengths, work.answers, BUDGET, work.llm.device).cpu().numpy()


def paper(work, size=8):
    """The paper's way: batches in the order of the rows, padded on the right, logits of every position."""
    scores = []
    for begin in range(0, len(work.texts), size):
        texts = work.texts[begin : begin + size]
        batch = work.tokenizer.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(work.llm.device)
        with torch.no_grad():
            logits = work.llm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        last = batch["attention_mask"].sum(dim=1) - 1
        answers = logits[torch.arange(len(texts)), last][:, list(work.answers)].float()
        scores.append(torch.softmax(answers, dim=-1)[:, 0])
    return torch.cat(scores).cpu().numpy()


def plain(work, size=32):
    """What one would write today: batches padded on the left, logits of the last position alone."""
    scores = []
    for begin in range(0, len(work.texts), size):
        texts = work.texts[begin : begin + size]
        batch = work.tokenizer.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(work.llm.device)
        with torch.inference_mode():
            logits = work.llm(**{k: batch[k] for k in ("input_ids", "attention_mask")}, use_cache=False, logits_to_keep=1).logits
        scores.append(torch.softmax(logits[:, -1, list(work.answers)].float(), dim=-1)[:, 0])
    return torch.cat(scores).cpu().numpy()


def cross_encoder(work):
    """sentence-transformers' scorer for causal LMs: a function without arguments, float [n]."""
    module = Transformer(str(work.folder), transformer_task="text-generation", model_kwargs={"dtype": work.llm.dtype})
    encoder = CrossEncoder(modules=[module, LogitScore(*work.answers)], device=str(work.llm.device))
    # It scores pairs, which its tokenizer joins, some with a start token before each part; none merges across a line break.
    tokenizer = encoder.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # Llama 3 has none
    start = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    pairs = [(f"{start}{text}\n", end) for text, end in (text.rsplit("\n", 1) for text in work.texts)]
    joined = tokenizer(*map(list, zip(*pairs)))["input_ids"]
    if joined != work.ids():
        raise AssertionError("Expected the same tokens from the CrossEncoder, found others.")
    sigmoid = torch.nn.Sigmoid()
    return lambda: encoder.predict(pairs, batch_size=32, activation_fn=sigmoid, show_progress_bar=False).astype(np.float32).ravel()


def layer_weights(llm):
    """The weights of the matrices in its layers, by which each token is multiplied."""
    return sum(p.numel() for p in llm.model.layers.parameters() if p.dim() > 1)


def operations(work):
    """What our passes need: floating-point operations, those of attention, tokens before and after sharing, the way."""
    ids = work.ids()
    lengths = torch.tensor([len(i) for i in ids])
    passes, way = forward_passes(work.llm, pad(ids), lengths, BUDGET)
    config = work.llm.config
    if way == "pieces":
        pairs = sum(length * shared + length * (length + 1) / 2 for tree in passes for _, shared, length in tree.pieces)
        tokens = sum(map(len, passes))
    else:
        tokens = sum(len(part) if way else len(part) * int(lengths[part].max()) for part in passes)
        pairs = float((lengths * (lengths + 1) / 2).sum())
    attention = 4 * config.hidden_size * config.num_hidden_layers * pairs
    return 2 * layer_weights(work.llm) * tokens + attention, attention, int(lengths.sum()), tokens, way


def sharing(ids, budget):
    """All tokens of prompts over those that are computed, float; 1 where nothing is shared.

    Args:
        ids (list of sequence of int): of the prompts.
        budget (int): tokens that a tree of them may have.
    """
    trees = prompt_trees(pad(ids), torch.tensor([len(i) for i in ids]), budget)
    return sum(map(len, ids)) / sum(map(len, trees))


def measure(work, repeats):
    """One case: medians, ratios to ours, memory, and the largest difference of scores."""
    encoder = cross_encoder(work)
    candidates = {
        "ours": lambda: ours(work),
        "CrossEncoder": encoder,
        "plain loop": lambda: plain(work),
        "paper's way": lambda: paper(work),
    }
    scores = {}
    found = in_turn(candidates, repeats, scores)
    needed, attention, tokens, computed, way = operations(work)
    for name, record in found.items():
        record["rows a second"] = len(work.texts) / record["seconds"]
        record["times ours"] = record["seconds"] / found["ours"]["seconds"]
        record["largest difference"] = float(np.abs(scores[name] - scores["ours"]).max())
    return {
        "rows": len(work.texts),
        "tokens a row": tokens / len(work.texts),
        "tokens / computed tokens": tokens / computed,
        "way": way or "batches",
        "attention, part of operations": attention / needed,
        "GFLOP/s of ours": needed / found["ours"]["seconds"] / 1e9,
        "candidates": found,
    }


def main():
    """Run the cases, print each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="all widths, recent behaviours, more rows; hours on a small CPU")
    parser.add_argument("--sweep", action="store_true", help="over K and over rows; ten minutes on 2 cores")
    parser.add_argument("--repeats", type=int, default=2)
    known = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    shapes = (["0.5B", "7B"] if gpu else ["1M", "25M", "110M"]) if known.large else ["25M"]
    kind = "large" if known.large else "sweep" if known.sweep else ""
    name, wanted = "-".join(filter(None, ("scoring", kind))), {"large": LARGE, "sweep": SWEEP, "": SMALL}[kind]
    record = {"command": COMMAND + (f" --{kind}" if kind else ""), "machine": machine(), "dtype": str(dtype)}
    record["matrix peak, GFLOP/s"] = matrix_peak(dtype, device)
    record["cases"] = {}
    for case, found in cases(wanted, LEAST if kind else 0, shapes, known.repeats, device, dtype):
        found["of matrix peak"] = found["GFLOP/s of ours"] / record["matrix peak, GFLOP/s"]
        record["cases"][case] = found
        others = ", ".join(f"{name} {r['times ours']:.2f}x" for name, r in found["candidates"].items() if name != "ours")
        print(f"{case}: {found['candidates']['ours']['rows a second']:.1f} rows/s; {others}", flush=True)
        write(name, record)
    if kind:
        picture(record, FOLDER / f"{name}.png")


def cases(wanted, least, shapes, repeats, device, dtype):
    """Measure cases, each for every shape of LLM.

    Args:
        wanted (list of tuple): kind (retrieved, recent or top-N), K, rows.
        least (int): behaviours that the history of a row must have.
        shapes (list of str): names in `workload.SHAPES`.
        repeats (int): calls of each candidate.

    Yields:
        tuple: name; what was measured, a dict.
    """
    with tempfile.TemporaryDirectory() as folder:
        prompts = {k: Prompts(k, folder) for k in {15} | {k for _, k, _ in wanted}}
        llm_texts = prompts[15].test_rows(2000, True)[0]
        for shape in shapes:
            made = make_llm(shape, llm_texts, device, dtype, folder)
            ours(make_workload(llm_texts[:2], None, made))  # finds, once for an LLM, how it takes trees
            shared = {}  # of a whole batch, which does not depend on the rows that are measured
            for kind, k, rows in wanted:
                top_n, retrieved = kind == "top-N", kind == "retrieved"
                case = prompts[k].candidates(rows // TOP_N, False) if top_n else prompts[k].test_rows(rows, retrieved, least)
                found = {"shape": shape, "kind": kind, "K": k, **measure(make_workload(*case, made), repeats)}
                if not top_n:
                    if (kind, k) not in shared:
                        # Of a whole evaluation batch: what a small sample may miss.
                        batch = [made[1].ids(text) for text in prompts[k].test_rows(4096, retrieved)[0]]
                        shared[kind, k] = sharing(batch, CPU_TOKENS)
                    found["sharing of a whole batch"] = shared[kind, k]
                yield f"{shape}, {kind}, K={k}, {rows} rows", found


if __name__ == "__main__":
    main()

"""Seconds of a decoder's gate and up projections, in float32 on a CPU, in the ways in which PyTorch can multiply them.

    python -m benchmarks.speed.layers [--repeats=9]

- ours: one after the other, as llm/products.py has PyTorch do it.
- by itself: the same, as PyTorch does it without it.
- one product: of both weights, one below the other.
- packed: by oneDNN over weights that were brought into its own layout before, as torch.compile freezes them.
- packed by MKL: the same by MKL.

Shapes are those of the random LLMs of the other benchmarks; tokens at a time as trees of prompts have them, and few. Writes
results/speed/layers.json.
"""

import argparse

import torch
import torch.nn.functional as F

from benchmarks.speed.measure import command, in_turn, machine, write
from benchmarks.speed.workload import SHAPES
from recbole_rella.llm.products import fast_products

COMMAND = "python -m benchmarks.speed.layers"
_SHAPES = {name: SHAPES[name][:2] for name in ("25M", "110M")}
_TOKENS, _AT_LEAST = (64, 256, 2048), 4096  # a call takes as many tokens as make milliseconds


def ways(tokens, hidden, inner):
    """Ways to multiply rows by two weights, dict: name -> callable without arguments, which gives a list of float [tokens, ...].

    Args:
        tokens (int), hidden (int), inner (int): rows, their numbers, and the rows of each weight.
    """
    rows, *weights = torch.randn(tokens, hidden), torch.randn(inner, hidden), torch.randn(inner, hidden)
    stacked = torch.cat(weights)

    def ours(of):
        with fast_products():
            return [F.linear(rows, weight) for weight in of]

    found = {
        "ours": lambda: ours(weights),
        "by itself": lambda: [F.linear(rows, weight) for weight in weights],
        "one product": lambda: ours([stacked]),
    }
    if torch.backends.mkldnn.is_available():
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, tokens) for weight in weights]
        multiply = torch.ops.mkldnn._linear_pointwise
        found["packed"] = lambda: [multiply(rows, weight, None, "none", [], "") for weight in packed]
    if torch.backends.mkl.is_available():
        by_mkl = [torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens) for weight in weights]
        found["packed by MKL"] = lambda: [torch.ops.mkl._mkl_linear(rows, *pair, None, tokens) for pair in zip(by_mkl, weights)]
    return found


def measure(tokens, hidden, inner, repeats):
    """Seconds of each way, by its name, over those of ours; ours in seconds.

    Args:
        tokens (int), hidden (int), inner (int): as for `ways`.
        repeats (int): how often each is measured, in turn.

    Returns:
        dict
    """
    calls = max(1, _AT_LEAST // tokens)

    def often(multiply):
        def call():
            for _ in range(calls):
                multiply()

        return call

    found = in_turn({name: often(multiply) for name, multiply in ways(tokens, hidden, inner).items()}, repeats)
    seconds = found["ours"]["seconds"]
    return {"seconds": seconds / calls, "times ours": {name: record["seconds"] / seconds for name, record in found.items()}}


@torch.inference_mode()
def main():
    """Measure each shape and number of tokens, print, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    record = {"command": command(COMMAND), "machine": machine(), "cases": {}}
    for name, (hidden, inner) in _SHAPES.items():
        for tokens in _TOKENS:
            found = measure(tokens, hidden, inner, repeats)
            record["cases"][f"{name}, {tokens} tokens"] = found
            print(f"{name}, {tokens} tokens", {way: round(times, 2) for way, times in found["times ours"].items()}, flush=True)
            write("layers", record)


if __name__ == "__main__":
    main()

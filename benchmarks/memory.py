"""GPU memory that tuning takes, computed from the shapes of an LLM and our settings; nothing is downloaded and no GPU is needed.

    python -m benchmarks.memory [--output_folder=results]

Each figure is a formula over shapes, written out in the functions below. Saved activations are also measured on a small LLM
with the same code that tunes (autograd's hooks for saved tensors), and the page says how well the formula meets them.
"""

import argparse
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from recbole_rella.files import replacing, write_json
from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.scoring import answer_logits

GIB = 2**30
# The shapes that the checkpoints' config.json files have.
LLMS = {
    "Vicuna-7B v1.5": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "Vicuna-13B v1.5": LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "Qwen2.5-7B": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}
WEIGHTS = ("bfloat16", "8bit", "4bit")
# CUDA's context, the kernels of PyTorch and bitsandbytes, and what the allocator cannot use for being in pieces.
RESERVE = 1.5 * GIB
CARD = 24e9  # what is sold as 24 GB has at least so many bytes


@dataclass(frozen=True)
class Settings:
    """What the memory depends on beside the LLM: our defaults, and prompts as long as the paper's (K = 30 on MovieLens)."""

    lora_r: int = 8
    targets: tuple = ("q_proj", "v_proj")
    micro_tokens: int = 8192
    prompt_tokens: int = 1024
    mask_bytes: int = 1  # of an element of dropout's mask: PyTorch keeps truth values on a GPU, and float32 on a CPU


def empty_llm(config, dtype=torch.bfloat16):
    """An LLM of these shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def weight_bytes(llm, kind):
    """Bytes of the frozen LLM.

    bitsandbytes quantizes the linear layers but for the head: embeddings, head and norms stay in bfloat16. 8bit keeps a byte a
    weight and a float32 a row; 4bit (NF4, no double quantization) half a byte a weight, a float32 for every 64 weights, and a
    table of 16 float32 a layer.

    Args:
        llm (transformers.PreTrainedModel): of any device.
        kind (str): bfloat16, 8bit or 4bit.

    Returns:
        int.
    """
    head = llm.get_output_embeddings()
    quantized = [m.weight for m in llm.modules() if type(m) is torch.nn.Linear and m is not head and kind != "bfloat16"]
    small = {
        "8bit": lambda weight: weight.numel() + 4 * weight.shape[0],
        "4bit": lambda weight: -(-weight.numel() // 2) + 4 * -(-weight.numel() // 64) + 4 * 16,
    }
    places = set(map(id, quantized))
    rest = sum(2 * parameter.numel() for parameter in llm.parameters() if id(parameter) not in places)
    return rest + sum(small[kind](weight) for weight in quantized)


def adapter_bytes(llm, settings):
    """Bytes of LoRA's matrices A and B, their gradients, and Adam's two moments: float32 each, 16 bytes a parameter."""
    targets = [m for name, m in llm.named_modules() if name.rsplit(".", 1)[-1] in settings.targets]
    return 16 * settings.lora_r * sum(module.in_features + module.out_features for module in targets)


def layer_bytes_a_token(config, settings, without_mlp=False):
    """Bytes that a layer keeps of a token for the backward pass, the LLM in bfloat16.

    Frozen linear layers keep nothing but their weight. What is kept, with h the hidden size, a heads x head size, i the
    intermediate size, and r and n the rank and number of LoRA's modules:

    8h + 8      the inputs of both norms and their scales, in float32
    n (5h + 4r) LoRA: its input in float32 behind dropout, dropout's mask, and the r numbers between A and B
    2 x 4a      queries, keys, values and the result of attention (keys and values repeated for all heads)
    4 heads     the normalizers of attention
    2 x 3i      the gate before and behind its activation, and what it is multiplied with

    Returns:
        int.
    """
    h, i = config.hidden_size, config.intermediate_size
    attention = config.num_attention_heads * (getattr(config, "head_dim", None) or h // config.num_attention_heads)
    lora = len(settings.targets) * ((4 + settings.mask_bytes) * h + 4 * settings.lora_r)
    return 8 * h + 8 + lora + 8 * attention + 4 * config.num_attention_heads + (0 if without_mlp else 6 * i)


def activation_bytes(config, settings, checkpointing):
    """Bytes that a micro-batch keeps for its backward pass at the worst moment.

    All layers keep theirs, the last one nothing for its MLP, which is computed at the answers alone, and the norm behind it 4h a
    token. With gradient checkpointing each layer keeps its input (2h a token), and one layer at a time is computed again.
    """
    if checkpointing:
        return kept_bytes(config, settings, True) + settings.micro_tokens * layer_bytes_a_token(config, settings)
    return kept_bytes(config, settings, False)


def kept_bytes(config, settings, checkpointing):
    """What of `activation_bytes` is kept when the forward pass ends: `measured_activations` measures this."""
    layers, layer = config.num_hidden_layers, layer_bytes_a_token(config, settings)
    last = layer_bytes_a_token(config, settings, without_mlp=True)
    inside = layers * 2 * config.hidden_size if checkpointing else (layers - 1) * layer + last
    return settings.micro_tokens * (inside + 4 * config.hidden_size + 4)


def working_bytes(config, settings, kind):
    """Bytes that come and go: gradients of one layer's MLP and of its input, the mask of a tree of prompts (its tokens squared, in
    bfloat16), and for quantized weights the largest one in bfloat16."""
    gradients = settings.micro_tokens * (6 * config.intermediate_size + 4 * config.hidden_size)
    mask = 2 * settings.micro_tokens**2
    return gradients + mask + (0 if kind == "bfloat16" else 2 * config.hidden_size * config.intermediate_size)


def logit_bytes(config, settings):
    """Bytes of the answers' logits: bfloat16, float32, their log-softmax and its gradient, over the vocabulary, at each answer."""
    return -(-settings.micro_tokens // settings.prompt_tokens) * config.vocab_size * (2 + 4 + 4 + 4)


def needed(name, kind, checkpointing, settings):
    """All of it, as a row of the table: bytes by part, and their sum."""
    config = LLMS[name]
    llm = empty_llm(config)
    parts = {
        "weights": weight_bytes(llm, kind),
        "adapters": adapter_bytes(llm, settings),
        "activations": activation_bytes(config, settings, checkpointing),
        "working": working_bytes(config, settings, kind),
        "logits": logit_bytes(config, settings),
        "reserve": int(RESERVE),
    }
    return {
        "llm": name,
        "weights_as": kind,
        "checkpointing": checkpointing,
        "micro_tokens": settings.micro_tokens,
        **parts,
        "all": sum(parts.values()),
    }


def measured_activations(config, settings, checkpointing):
    """Bytes that autograd keeps in one forward pass of the tuning code over one micro-batch, each storage once, weights left out.

    With gradient checkpointing: what is kept before the backward pass begins to compute a layer again.

    Args:
        config (transformers.PreTrainedConfig): small enough to be computed here.
        settings (Settings): `micro_tokens` in prompts of `prompt_tokens` that have no beginning in common.

    Returns:
        int.
    """
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    llm = add_lora(llm, settings.lora_r, 16, 0.05, list(settings.targets), checkpointing).train()
    prompts = settings.micro_tokens // settings.prompt_tokens
    ids = torch.from_numpy(np.random.default_rng(0).integers(config.vocab_size, size=(prompts, settings.prompt_tokens)))
    ids[:, 0] = torch.arange(prompts)
    weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays alive: its address is its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes = list(answer_logits(llm, ids, torch.full((prompts,), settings.prompt_tokens), settings.micro_tokens))
    assert len(passes) == 1
    return sum(size for size, _ in kept.values())


SMALL = LlamaConfig(
    vocab_size=100, hidden_size=128, intermediate_size=344, num_hidden_layers=12, num_attention_heads=4, max_position_embeddings=512
)
SMALL_SETTINGS = Settings(micro_tokens=1024, prompt_tokens=256, mask_bytes=4)

PAGE = """# Memory of tuning

Computed, not measured on a GPU: there was none. The command, which needs neither a GPU nor a download:

```
python -m benchmarks.memory
```

GiB to tune with LoRA (rank {s.lora_r} on {targets}; float32 adapters, gradients and Adam states), micro-batches of
`train_micro_tokens` tokens in prompts of {s.prompt_tokens}, activations in bfloat16. A GPU that is sold as 24 GB has {card:.1f}
GiB.

{table}

How each column is computed stands in [benchmarks/memory.py](../benchmarks/memory.py): *weights* from the shapes (bitsandbytes
leaves embeddings, head and norms in bfloat16; 4bit is NF4 with its constants, without double quantization; both equal to the byte
what bitsandbytes 0.50.2 holds of a small Llama); *adapters* are 16 bytes a parameter; *activations* are what autograd keeps,
{formula} bytes a token and layer without checkpointing (h hidden size, a heads x head size, i
intermediate size, n and r number and rank of LoRA's modules), 2h with it, and one layer; *working* are gradients of one layer, the
mask of a tree of prompts, and a dequantized weight; *reserve* is a guess: CUDA's context, kernels, and memory that is in pieces.

Against what autograd keeps on a CPU, in the code that tunes, for a Llama of {layers} layers and hidden size {hidden} ({tokens}
tokens): the formula gives {plain:.1%} of what was measured without gradient checkpointing, {checkpointed:.1%} with it.

What to take from it:

- With `llm_gradient_checkpointing: True` each of these LLMs fits into 24 GB in 4 bits and in 8 bits, and those of 7B and 8B in
  bfloat16 too, with the default `train_micro_tokens: 8192`.
- Without it 8192 tokens fit in no form. Smaller micro-batches do (1024 tokens: all in 4 bits, all but 13B in 8 bits) and give the
  same gradients.
- Scoring is not in the table: it keeps nothing for a backward pass.

Python {python}, torch {torch}, transformers {transformers}.
"""


def main():
    """Compute, check the formula on a small LLM, print the table, and write memory.md and memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_folder", type=Path, default=Path("results"))
    folder = parser.parse_args().output_folder
    ways = [(True, Settings()), (False, Settings()), (False, Settings(micro_tokens=1024))]
    rows = [needed(name, kind, *way) for name in LLMS for kind in WEIGHTS for way in ways]
    shares = [kept_bytes(SMALL, SMALL_SETTINGS, way) / measured_activations(SMALL, SMALL_SETTINGS, way) for way in (False, True)]
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    write_json(
        folder / "memory.json",
        {
            "bytes": rows,
            "fits": {"card_bytes": CARD},
            "formula_over_measured": {"plain": shares[0], "checkpointing": shares[1]},
            "versions": versions,
        },
    )
    parts = ["weights", "adapters", "activations", "working", "logits", "reserve", "all"]
    table = [
        {
            "LLM": row["llm"],
            "weights as": row["weights_as"],
            "gradient checkpointing": "yes" if row["checkpointing"] else "no",
            "train_micro_tokens": row["micro_tokens"],
            **{part: f"{row[part] / GIB:.2f}" for part in parts},
            "fits 24 GB": "yes" if row["all"] <= CARD else "no",
        }
        for row in rows
    ]
    table = pd.DataFrame(table).to_markdown(index=False, disable_numparse=True)
    settings = ways[0][1]
    page = PAGE.format(
        s=settings,
        targets=" and ".join(settings.targets),
        card=CARD / GIB,
        table=table,
        layers=SMALL.num_hidden_layers,
        formula="8h + 8 + n (5h + 4r) + 8a + 4 heads + 6i",
        hidden=SMALL.hidden_size,
        tokens=SMALL_SETTINGS.micro_tokens,
        plain=shares[0],
        checkpointed=shares[1],
        python=platform.python_version(),
        torch=versions["torch"],
        transformers=versions["transformers"],
    )
    with replacing(folder / "memory.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

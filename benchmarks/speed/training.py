"""Samples tuned on a second: ours, the Hugging Face Trainer with PEFT, and the paper's way (logits of every position).

    python -m benchmarks.speed.training [--steps=6] [--batch=16] [--repeats=2]

Everybody gets the same samples in the same order, the same adapters, optimizer and learning rate, no dropout, and must show the
same losses. `ours, compiled` is ours with torch.compile over what a layer does behind its attention (its MLP); attention itself
walks over the pieces of a tree, which are others every time and would be compiled every time. Writes results/speed/training.json.
"""

import argparse
import copy
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from benchmarks.speed.measure import in_turn, machine, write
from benchmarks.speed.workload import Prompts, make_llm, make_workload
from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.scoring import answer_logits, forward_passes, pad

BUDGET = 8192  # train_micro_tokens as shipped
MICRO = 4  # prompts that the others put through the LLM at a time, as the paper's scripts do
RATE = 1e-3
COMMAND = "python -m benchmarks.speed.training"


class Samples:
    """Token ids of prompts, and their answers.

    Args:
        work (Workload): texts and labels.
    """

    def __init__(self, work):
        self.ids = work.ids()
        yes, no = work.answers
        self.answers = torch.where(torch.from_numpy(work.labels) > 0, yes, no)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        """As the Trainer takes it: the prompt with its answer, and the loss on the answer alone."""
        answer = int(self.answers[place])
        return {"input_ids": [*self.ids[place], answer], "labels": [-100] * len(self.ids[place]) + [answer]}


def collate(samples):
    """Right-padded tensors for the Trainer."""
    ids, labels = (pad([sample[key] for sample in samples]) for key in ("input_ids", "labels"))
    mask = pad([[1] * len(sample["input_ids"]) for sample in samples])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def adapted(llm):
    """A copy of the LLM with the same new adapters each time, and their optimizer."""
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(llm), 8, 16, 0.0, ["q_proj", "v_proj"]).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, trained, torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)


def compiled(llm, samples, steps, batch):
    """As `ours`, with compiled MLPs."""
    return ours(llm, samples, steps, batch, backend="inductor")


def ours(llm, samples, steps, batch, backend=None):
    """Losses of each step by recbole_rella's passes, as ReLLaTrainer adds them up, float [steps]; MLPs compiled by a backend."""
    model, trained, optimizer = adapted(llm)
    if backend is not None:
        for layer in model.get_base_model().get_decoder().layers[:-1]:  # that of the last layer is computed at answers alone
            layer.mlp.compile(dynamic=True, backend=backend)
    losses = []
    for begin in range(0, steps * batch, batch):
        ids = samples.ids[begin : begin + batch]
        padded, lengths, answers = pad(ids), torch.tensor([len(i) for i in ids]), samples.answers[begin : begin + batch]
        passes, way = forward_passes(model, padded, lengths, BUDGET)
        total = 0.0
        optimizer.zero_grad()
        for part in passes:
            prompts = part.prompts if way else part
            found = answer_logits(model, padded[prompts], lengths[prompts], BUDGET)
            loss = sum(F.cross_entropy(logits, answers[prompts][p.cpu()].to(logits.device), reduction="sum") for p, logits in found)
            (loss / batch).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(total / batch)
    return losses


def paper(llm, samples, steps, batch):
    """The paper's way: padded batches, logits of every position and the whole vocabulary."""
    model, trained, optimizer = adapted(llm)
    losses = []
    for begin in range(0, steps * batch, batch):
        total = 0.0
        optimizer.zero_grad()
        for first in range(begin, begin + batch, MICRO):
            inputs = {k: v.to(model.device) for k, v in collate([samples[i] for i in range(first, first + MICRO)]).items()}
            loss = model(**inputs).loss * (MICRO / batch)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(total)
    return losses


class _InOrder(Trainer):
    """The Trainer, with the samples in the order in which everybody gets them."""

    def _get_train_sampler(self, *_):
        return None


def trainer(llm, samples, steps, batch):
    """Hugging Face's Trainer over a PEFT model."""
    model, _, _ = adapted(llm)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=batch // MICRO,
            learning_rate=RATE,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            bf16=False,
            remove_unused_columns=False,
            optim="adamw_torch",
        )
        running = _InOrder(model=model, args=arguments, train_dataset=samples, data_collator=collate)
        running.train()
        return [entry["loss"] for entry in running.state.log_history if "loss" in entry]


def main():
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="25M")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    known = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        texts, labels = Prompts(15, folder).shots(known.steps * known.batch // 2)
    work = make_workload(texts, labels, make_llm(known.shape, texts, device, dtype))
    samples, losses = Samples(work), {}
    candidates = {"ours": ours, "ours, compiled": compiled, "Trainer": trainer, "paper's way": paper}

    def run(name):
        losses[name] = np.array(candidates[name](work.llm, samples, known.steps, known.batch))

    began = time.perf_counter()
    compiled(work.llm, samples, 1, known.batch)
    compiling = time.perf_counter() - began
    found = in_turn({name: lambda name=name: run(name) for name in candidates}, known.repeats)
    for name, record in found.items():
        record["samples a second"] = known.steps * known.batch / record["seconds"]
        record["times ours"] = record["seconds"] / found["ours"]["seconds"]
        record["largest difference of losses"] = float(np.abs(losses[name] - losses["ours"]).max())
    record = {
        "command": COMMAND,
        "machine": machine(),
        "dtype": str(dtype),
        "shape": known.shape,
        "steps": known.steps,
        "samples a step": known.batch,
        "tokens a sample": float(np.mean([len(i) for i in samples.ids])),
        "losses of ours": [round(float(loss), 6) for loss in losses["ours"]],
        "seconds of the first compiled step": compiling,
        "candidates": found,
    }
    print(
        f"ours {found['ours']['samples a second']:.2f} samples/s; "
        + ", ".join(
            f"{name} {r['times ours']:.2f}x, loss {r['largest difference of losses']:.1e}"
            for name, r in found.items()
            if name != "ours"
        )
    )
    write("training", record)


if __name__ == "__main__":
    main()

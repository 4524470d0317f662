"""Samples tuned on a second: ours, the Hugging Face Trainer with PEFT, and the paper's way (logits of every position).

    python -m benchmarks.speed.training [--steps=6] [--batch=16] [--repeats=2]

Ours is a run of ReLLa by ReLLaTrainer. The others get its samples in its order, the same adapters, optimizer and learning rates, no
dropout, and must show the same losses. Writes results/speed/training.json.
"""

import argparse
import copy
import logging
import sys
import tempfile

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

from benchmarks.speed.measure import in_turn, machine, write
from benchmarks.speed.workload import Prompts, make_llm
from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.scoring import pad, unpad
from recbole_rella.model.context_aware_recommender.rella import ReLLa
from recbole_rella.quick_start import load_data, make_config, no_command_line
from recbole_rella.rows.fields import PROMPT_IDS, PROMPT_LENGTH
from recbole_rella.trainer import ReLLaTrainer

MICRO = 4  # prompts that the others put through the LLM at a time, as the paper's scripts do
RATE = 1e-3
# What everybody has in common: these samples, once, with a learning rate that falls from RATE to 0.
SETTINGS = {
    "epochs": 1,
    "train_history": "mixed",
    "learning_rate": RATE,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
    "history_fields": None,
    "spa": False,
    "show_progress": False,
}
COMMAND = "python -m benchmarks.speed.training"


class _Recorded(ReLLaTrainer):
    """Ours, which keeps the loss of every step."""

    def fit(self, *data, **how):
        self.losses = []
        return super().fit(*data, **how)

    def _accumulate(self, interaction):
        loss = super()._accumulate(interaction)
        self.losses.append(loss.item())
        return loss


class Run:
    """A run of ReLLa that can be begun any number of times.

    Args:
        config (recbole.config.Config): of ReLLa, with SETTINGS; its training rows fill all batches.

    Attributes:
        llm (transformers.PreTrainedModel): without adapters.
        ids (list of list of int), answers (list of int): prompts and their answers, in the order in which they are tuned on.
    """

    def __init__(self, config):
        self.config = config
        self._train = load_data(config)[1][0]
        self._order = self._train.generator.get_state()
        assembly = self._train._dataset.assembly
        self.llm, self.ids, self.answers = assembly.backbone.model, [], []
        yes, no = assembly.answer_ids
        for batch in self._train:
            self.ids += unpad(batch[PROMPT_IDS], batch[PROMPT_LENGTH])
            self.answers += [yes if label > 0 else no for label in batch[config["LABEL_FIELD"]].tolist()]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        """As the Trainer takes it: the prompt with its answer, and the loss on the answer alone."""
        return {
            "input_ids": [*self.ids[place], self.answers[place]],
            "labels": [-100] * len(self.ids[place]) + [self.answers[place]],
        }

    @property
    def batch(self):
        """Samples of a step."""
        return self.config["train_batch_size"]

    @property
    def steps(self):
        """Steps of the run."""
        return len(self) // self.batch

    def adapted(self):
        """A copy of the LLM with the same new adapters each time."""
        torch.manual_seed(0)
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        return add_lora(copy.deepcopy(self.llm), *(self.config[name] for name in names)).train()

    def ours(self):
        """Losses of each step, list of float, by our own trainer."""
        dataset = self._train._dataset
        backbone = dataset.assembly.backbone
        backbone.model = copy.deepcopy(self.llm)  # adapters are put on the LLM itself
        torch.manual_seed(0)
        model = ReLLa(self.config, dataset).to(self.config["device"])
        self._train.generator.set_state(self._order)
        trainer = _Recorded(self.config, model)
        trainer.fit(self._train, verbose=False, saved=False)
        backbone.model = self.llm
        return trainer.losses


def collate(samples):
    """Right-padded tensors for the Trainer."""
    ids, labels = (pad([sample[key] for sample in samples]) for key in ("input_ids", "labels"))
    mask = pad([[1] * len(sample["input_ids"]) for sample in samples])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def paper(run):
    """The paper's way: padded batches, logits of every position and the whole vocabulary."""
    model, losses = run.adapted(), []
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, run.steps)
    for begin in range(0, len(run), run.batch):
        total = 0.0
        optimizer.zero_grad()
        for first in range(begin, begin + run.batch, MICRO):
            some = collate([run[place] for place in range(first, min(first + MICRO, begin + run.batch))])
            inputs = {name: value.to(model.device) for name, value in some.items()}
            loss = model(**inputs).loss * (len(inputs["input_ids"]) / run.batch)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses


class _InOrder(Trainer):
    """The Trainer, with the samples in the order in which everybody gets them."""

    def _get_train_sampler(self, *_):
        return None


def trainer(run):
    """Hugging Face's Trainer over a PEFT model."""
    model = run.adapted()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=run.steps,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=run.batch // MICRO,
            learning_rate=RATE,
            weight_decay=0.0,
            lr_scheduler_type="linear",
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
        running = _InOrder(model=model, args=arguments, train_dataset=run, data_collator=collate)
        running.train()
        return [entry["loss"] for entry in running.state.log_history if "loss" in entry]


def measure(run, repeats):
    """Seconds, memory and losses of everybody, as JSON-able values."""
    losses, candidates = {}, {"ours": run.ours, "Trainer": lambda: trainer(run), "paper's way": lambda: paper(run)}
    found = in_turn(candidates, repeats, losses)
    for name, record in found.items():
        record["samples a second"] = len(run) / record["seconds"]
        record["times ours"] = record["seconds"] / found["ours"]["seconds"]
        record["largest difference of losses"] = float(np.abs(np.subtract(losses[name], losses["ours"])).max())
    return {
        "steps": run.steps,
        "samples a step": run.batch,
        "tokens a sample": float(np.mean([len(ids) for ids in run.ids])),
        "losses of ours": [round(float(loss), 6) for loss in losses["ours"]],
        "candidates": found,
    }


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
        prompts = Prompts(15, folder)
        llm = make_llm(known.shape, prompts.shots(1000)[0], device, dtype, folder)[2]
        shots = known.steps * known.batch // 2
        logging.disable(logging.WARNING)
        own = {
            "llm": str(llm),
            "train_shots": shots,
            "train_batch_size": known.batch,
            "eval_rows": 1,
            "run_folder": f"{folder}/run",
        }
        with no_command_line():
            run = Run(make_config("ReLLa", "ml-100k", config_dict={**prompts.settings, **SETTINGS, **own}))
            record = measure(run, known.repeats)
    command = " ".join([COMMAND, *sys.argv[1:]])
    write("training", {"command": command, "machine": machine(), "dtype": str(dtype), "shape": known.shape, **record})
    for name, found in record["candidates"].items():
        print(f"{name}: {found['samples a second']:.2f} samples/s, {found['times ours']:.2f}x")


if __name__ == "__main__":
    main()

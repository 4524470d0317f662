"""ReLLaTrainer: RecBole's Trainer with its hooks overridden.

RecBole's loop stays: epochs, early stopping, evaluation, metrics. It calls the loss of a batch, then backward, then the optimizer.
Here the loss of a batch has made all its gradients already, one forward pass after the other under a token budget, and what RecBole
gets is a number whose own backward pass adds nothing. Also ours: the forward passes are shared by the processes of a run; the
learning rate schedule; the adapters as checkpoint; the state from which an interrupted run goes on (checkpoint.py).
"""

import time

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import set_color
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from recbole_rella import processes
from recbole_rella.checkpoint import Interruption, RemainingBatches, load_state, random_state, restore_random, save_state
from recbole_rella.errors import RellaError
from recbole_rella.predictions import KeepsPredictions
from recbole_rella.rows.fields import PROMPT_DROPPED, PROMPT_LENGTH
from recbole_rella.run_folder import ADAPTER, RESUME


class TrainingError(RellaError):
    """Training came to numbers that it cannot go on with."""


class ReLLaTrainer(KeepsPredictions, Trainer):
    """Tunes and evaluates ReLLa.

    Args:
        config (recbole.config.Config): RecBole's.
        model (ReLLa): the model.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.assembly = model.assembly
        self.saved_model_file = str(self.run_folder / ADAPTER)
        self._saves, self._interruption = False, Interruption()
        self._resumed = None
        self._epoch = {"order": torch.empty(0)}
        self._dropped = 0

    def _build_optimizer(self, **kwargs):
        """RecBole's optimizer, over the trainable parameters alone, and all of them in one operation where PyTorch has it."""
        optimizer = super()._build_optimizer(params=[p for p in self.model.parameters() if p.requires_grad], **kwargs)
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            for group in optimizer.param_groups:
                group["fused"] = True
        return optimizer

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit, resumed where resume_from says so. With epochs 0 (zero-shot) it only validates.

        Returns:
            tuple: best validation score (float), best validation result (dict), as RecBole's.
        """
        self._saves = saved and processes.is_first()
        if self.config["resume_from"] and processes.from_first((self.run_folder / RESUME).is_file):
            state = load_state(self.run_folder / RESUME)
        else:
            state = None
        steps = len(train_data) * self.epochs
        self._schedule = get_linear_schedule_with_warmup(self.optimizer, int(steps * self.config["warmup_ratio"]), steps)
        if state is not None:
            self._resume(state)
        after_step = self.optimizer.register_step_post_hook(lambda *_: self._after_step())
        try:
            with self._interruption.watched():
                result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        except KeyboardInterrupt:
            if self._saves and "epoch" in self._epoch:
                self._save_state(self._epoch["epoch"], self._epoch["done"], self._epoch["loss"])
                self.logger.info(f"Interrupted; go on with --resume_from={self.run_folder}")
            raise
        finally:
            after_step.remove()
        if self.epochs == 0 and valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            result = self.best_valid_score, self.best_valid_result
        if self._saves:
            self._epoch["order"] = train_data.generator.get_state()  # more epochs, if they are asked for, go on from here
            self._save_state(self.epochs, 0, 0.0)
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """RecBole's epoch over our progress bar; an epoch that was interrupted goes on behind its last saved step."""
        resumed, self._resumed = self._resumed or {}, None
        if resumed:
            train_data.generator.set_state(resumed["order"])
        self._epoch = {
            "epoch": epoch_idx,
            "order": train_data.generator.get_state(),
            "loss": resumed.get("loss", 0.0),
            "done": resumed.get("done", 0),
        }
        loss_before, done_before = self._epoch["loss"], self._epoch["done"]
        self._begin = self._last_save = time.monotonic()
        self._tokens = self._dropped = 0
        if self._saves and not resumed:
            self._save_state(epoch_idx, 0, 0.0)
        rest = RemainingBatches(train_data, done_before, lambda: resumed and restore_random(resumed["random"]))
        self._bar = tqdm(
            rest,
            total=len(train_data),
            initial=done_before,
            ncols=110,
            disable=not show_progress,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
        )
        loss = super()._train_epoch(self._bar, epoch_idx, loss_func or self._accumulate, show_progress=False)
        self._log_dropped("training")
        return loss_before + (loss or 0.0)

    def _accumulate(self, interaction):
        """Gradients of a batch, one forward pass at a time, by all processes; their sum is that of the batch's mean loss.

        Returns:
            torch.Tensor: the mean loss of the batch. Its own backward pass, which RecBole calls, adds nothing.
        """
        self._interruption.begin_step()
        self._batch = interaction = self.model.prompted(interaction)
        if processes.count() > 1:
            # What is dropped out differs between the processes, and an interrupted run draws it again.
            place = (self.config["seed"], self._epoch["epoch"], self._epoch["done"], processes.rank())
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        parts = torch.zeros(1, dtype=torch.float64)
        for loss in self.model.losses(interaction, shared=True):
            loss.backward()
            parts += loss.item()
        if processes.count() > 1:
            processes.add_up([parts])
            processes.add_up(self._gradients())
        total = parts.item()
        self._tokens += int(interaction[PROMPT_LENGTH].sum())
        self._dropped += int((interaction[PROMPT_DROPPED] > 0).sum())
        self._epoch["loss"] += total
        rate = self._tokens / (time.monotonic() - self._begin)
        self._bar.set_postfix_str(f"loss {total:.4f}, {rate:.0f} tokens/s")
        return torch.tensor(total, requires_grad=True)

    def _gradients(self):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # of a process that had no forward pass
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained]

    def _check_nan(self, loss):
        try:
            super()._check_nan(loss)
        except ValueError as error:
            raise TrainingError(
                f"{error} in epoch {self._epoch['epoch']}; the rows of this batch are {self.model.row_ids(self._batch)}. "
                "Lower learning_rate, or set llm_dtype to float32 or bfloat16."
            ) from error

    def _after_step(self):
        self._schedule.step()
        self._epoch["done"] += 1
        if self._saves and time.monotonic() - self._last_save >= 60 * self.config["checkpoint_minutes"]:
            self._save_state(self._epoch["epoch"], self._epoch["done"], self._epoch["loss"])
            self._last_save = time.monotonic()
        self._interruption.end_step()

    def _log_dropped(self, phase):
        if self._dropped:
            self.logger.info(
                f"{self._dropped} prompts of {phase} were over max_prompt_tokens and lost their oldest shown behaviours."
            )
        self._dropped = 0

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """RecBole calls this for every best epoch: the adapter replaces the one before."""
        if self._finished():
            return
        self.best_epoch = epoch if epoch >= 0 else None
        if processes.is_first():
            self.model.save_adapter(self.saved_model_file)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {self.saved_model_file}")

    def _finished(self):
        """Whether a resumed run was over already, so that its best adapter must stay."""
        return self.config["resume_from"] and self.epochs > 0 and self.start_epoch >= self.epochs

    def _save_state(self, epoch, done, loss):
        """Everything an interrupted run needs to end with the scores of an uninterrupted one; no pickled code."""
        trainable = {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad}
        state = {
            "epoch": epoch,
            "done": done,
            "loss": loss,
            "order": self._epoch["order"],
            "trainable": trainable,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": random_state(),
            "cur_step": self.cur_step,
            "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result and {k: float(v) for k, v in self.best_valid_result.items()},
            "train_seconds": self.train_seconds,
        }
        # Lambda functions of the schedule are code; it makes them again.
        state["schedule"].pop("lr_lambdas", None)
        save_state(self.run_folder / RESUME, state)

    def resume_checkpoint(self, resume_file):
        """RecBole's name for it: go on where an interrupted run stopped.

        Args:
            resume_file (str or pathlib.Path): the state in a run folder.

        Raises:
            RunError: the file is damaged.
        """
        self._resume(load_state(resume_file))

    def _resume(self, state):
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["trainable"].items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(self.optimizer.param_groups)})
        self.start_epoch, self.cur_step, self.best_epoch = state["epoch"], state["cur_step"], state["best_epoch"]
        self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        self.train_seconds = state["train_seconds"]
        if self.start_epoch < self.epochs:
            self._resumed = state
        self.logger.info(f"Resuming from epoch {state['epoch']}, step {state['done']} of [{self.run_folder}]")

    def _neg_sample_batch_eval(self, batched_data):
        interaction, *rest = super()._neg_sample_batch_eval(batched_data)
        if PROMPT_DROPPED in interaction:
            self._dropped += int((interaction[PROMPT_DROPPED] > 0).sum())
        return interaction, *rest

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """The best model is the adapter in the run folder; `model_file` may name another adapter folder."""
        if load_best_model and eval_data:
            self.model.load_adapter(model_file or self.saved_model_file)
            self.logger.info(f"Loading the adapter from {model_file or self.saved_model_file}")
        self._dropped = 0
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self._log_dropped("evaluation")
        return result

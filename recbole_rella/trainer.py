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
from recbole_rella.run_folder import ADAPTER, RESUME, RunError


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
        self._place, self._is_whole, self._next_epoch = None, False, 0
        self._dropped, self._loss = 0, 0.0

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
        self._place, self._is_whole, self._next_epoch = None, False, 0
        done = 0
        if self.config["resume_from"] and processes.from_first((self.run_folder / RESUME).is_file):
            self._resume(load_state(self.run_folder / RESUME))
            done = self._place["epoch"] * len(train_data) + self._place["done"]
        # Made behind the optimizer's own state, which holds the learning rate of a schedule of perhaps fewer epochs.
        steps = len(train_data) * self.epochs
        self._schedule = get_linear_schedule_with_warmup(
            self.optimizer, int(steps * self.config["warmup_ratio"]), steps, last_epoch=done - 1
        )
        before_step = self.optimizer.register_step_pre_hook(lambda *_: self._before_step())
        after_step = self.optimizer.register_step_post_hook(lambda *_: self._after_step())
        try:
            with self._interruption.watched():
                result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        except KeyboardInterrupt:
            if self._saves and self._place is not None:
                if self._is_whole:
                    self._save_state()
                self.logger.info(f"Interrupted; go on with --resume_from={self.run_folder}")
            raise
        finally:
            before_step.remove()
            after_step.remove()
        if self.epochs == 0 and valid_data and not self._is_over():
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            result = self.best_valid_score, self.best_valid_result
        if self._saves and self._next_epoch is not None:
            # More epochs, if they are asked for, go on from here: behind the last one that was trained, be it for early stopping.
            self._stand(self._next_epoch, 0, 0.0, train_data.generator.get_state())
            self._save_state()
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """RecBole's epoch over our progress bar; an epoch that was interrupted goes on behind its last saved step."""
        if self._next_epoch is None:
            train_data.generator.set_state(self._place["order"])
        else:
            self._stand(epoch_idx, 0, 0.0, train_data.generator.get_state())
            if self._saves:
                self._save_state()
        self._next_epoch = epoch_idx + 1
        done, loss_before, random = (self._place[name] for name in ("done", "loss", "random"))
        self._begin = self._last_save = time.monotonic()
        self._tokens = self._dropped = 0
        self._bar = tqdm(
            RemainingBatches(train_data, done, lambda: restore_random(random, self.device)),
            total=len(train_data),
            initial=done,
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
            place = (self.config["seed"], self._place["epoch"], self._place["done"], processes.rank())
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        parts = torch.zeros(1, dtype=torch.float64)
        for loss in self.model.losses(interaction, shared=True):
            loss.backward()
            parts += loss.item()
        if processes.count() > 1:
            processes.add_up([parts])
            processes.add_up(self._gradients())
        self._loss = total = parts.item()
        self._tokens += int(interaction[PROMPT_LENGTH].sum())
        self._dropped += int((interaction[PROMPT_DROPPED] > 0).sum())
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
                f"{error} in epoch {self._place['epoch']}; the rows of this batch are {self.model.row_ids(self._batch)}. "
                "Lower learning_rate, or set llm_dtype to float32 or bfloat16."
            ) from error

    def _before_step(self):
        self._is_whole = False

    def _after_step(self):
        self._schedule.step()
        place = self._place
        self._stand(place["epoch"], place["done"] + 1, place["loss"] + self._loss, place["order"])
        if self._saves and time.monotonic() - self._last_save >= 60 * self.config["checkpoint_minutes"]:
            self._save_state()
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
        if self._is_over():
            return
        self.best_epoch = epoch if epoch >= 0 else None
        if processes.is_first():
            self.model.save_adapter(self.saved_model_file)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {self.saved_model_file}")

    def _is_over(self):
        """Whether a resumed run has nothing more to train, so that its best adapter must stay."""
        return self._next_epoch is None and self._place["epoch"] > 0

    def _stand(self, epoch, done, loss, order):
        """Note where training stands, at the begin of an epoch or behind a step of it.

        A run that goes on does all again that came later: batches that were fetched, a validation with what was concluded from it.
        So what is saved later than this is nevertheless what was so here.
        """
        self._place = {
            "epoch": epoch,
            "done": done,
            "loss": loss,
            "order": order,
            "random": random_state(self.device),
            "cur_step": self.cur_step,
            "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result and {k: float(v) for k, v in self.best_valid_result.items()},
            "train_seconds": self.train_seconds,
        }
        self._is_whole = True

    def _save_state(self):
        """Everything an interrupted run needs to end with the scores of an uninterrupted one; no pickled code."""
        trainable = {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad}
        state = {**self._place, "trainable": trainable, "optimizer": self.optimizer.state_dict()}
        save_state(self.run_folder / RESUME, state)

    def _resume(self, state):
        """Stand where a run stood when its state was saved."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state.pop("trainable").items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self._place, self._is_whole, self._next_epoch = state, True, None
        self.start_epoch, self.cur_step, self.best_epoch = state["epoch"], state["cur_step"], state["best_epoch"]
        self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        self.train_seconds = state["train_seconds"]
        self.logger.info(f"Resuming from epoch {state['epoch']}, step {state['done']} of [{self.run_folder}]")
        if self.cur_step > self.stopping_step and self.start_epoch < self.epochs:
            self.logger.info(
                f"No further epoch: {self.cur_step} validations in a row were no better than the best one. With a stopping_step of "
                f"at least {self.cur_step} it would go on."
            )
            self.start_epoch = self.epochs

    def resume_checkpoint(self, resume_file):
        """Refused: RecBole's own, which nothing in RecBole calls, takes our file for one of its own until it fails half-way.

        Raises:
            RunError: always. A state goes with its folder, and what it stands on is compared before any weights are loaded.
        """
        raise RunError(
            f"resume_checkpoint: expected the folder of the run as resume_from in the configuration, found {resume_file}. Set it, "
            "and call fit."
        )

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

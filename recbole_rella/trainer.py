"""What differs from RecBole's Trainer, by overriding its hooks: KeepsPredictions for any model, ReLLaTrainer for ReLLa.

RecBole's loop stays: epochs, early stopping, evaluation, metrics. Ours are the forward passes under a token budget, shared by
the processes of a run, the learning rate schedule, the adapters as checkpoint, the state from which an interrupted run goes on,
and the predictions that are kept.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import get_local_time, set_color
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from recbole_rella import processes
from recbole_rella.files import replacing
from recbole_rella.rows.fields import PROMPT_DROPPED, PROMPT_LENGTH, ROW_ID
from recbole_rella.run_folder import ADAPTER, CHECKPOINT, RESUME, write_config


class KeepsPredictions:
    """Mixed into a trainer of RecBole: keeps the scores of the evaluated rows, the best epoch and the times.

    Attributes:
        run_folder (pathlib.Path): where the run is written: resume_from or run_folder where given, else a new one.
        best_epoch (int or None): the epoch of the best validation score.
        predictions (dict): row_id and score of the rows of the last evaluation, numpy arrays.
        train_seconds (float): time in training epochs, without validation.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        given = config["resume_from"] or config["run_folder"]
        name = f"{config['model']}-{config['dataset']}-{get_local_time()}"
        self.run_folder = Path(given).expanduser() if given else Path(self.checkpoint_dir) / name
        self._is_new = not given
        self.saved_model_file = str(self.run_folder / CHECKPOINT)
        self.best_epoch = None
        self.predictions = {}
        self.train_seconds = 0.0

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        if saved:
            if self._is_new:
                self.run_folder = processes.from_first(lambda: _new_folder(self.run_folder))
                self.saved_model_file = str(self.run_folder / Path(self.saved_model_file).name)
            if processes.is_first():
                self.run_folder.mkdir(parents=True, exist_ok=True)
                write_config(self.run_folder, self.config)
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        began = time.monotonic()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.train_seconds += time.monotonic() - began
        return loss

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        self.best_epoch = epoch if epoch >= 0 else None
        super()._save_checkpoint(epoch, verbose, **kwargs)

    def _neg_sample_batch_eval(self, batched_data):
        """RecBole's, with the scores kept row by row."""
        interaction, scores, positive_u, positive_i = super()._neg_sample_batch_eval(batched_data)
        if ROW_ID in interaction and scores.dim() == 1:
            self._kept.append((interaction[ROW_ID].cpu().numpy(), scores.detach().float().cpu().numpy()))
        return interaction, scores, positive_u, positive_i

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        self._kept = []
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        rows, scores = zip(*self._kept) if self._kept else ((np.empty(0, int),), (np.empty(0),))
        self.predictions = {"row_id": np.concatenate(rows), "score": np.concatenate(scores)}
        return result


def keeping_predictions(trainer_class):
    """The trainer of a built-in model, with KeepsPredictions mixed in."""
    return type(trainer_class.__name__, (KeepsPredictions, trainer_class), {})


class ReLLaTrainer(KeepsPredictions, Trainer):
    """Tunes and evaluates ReLLa.

    Args:
        config (recbole.config.Config): RecBole's.
        model (ReLLa): the model.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.saved_model_file = str(self.run_folder / ADAPTER)
        self._saves = False
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
        steps = len(train_data) * self.epochs
        self._schedule = get_linear_schedule_with_warmup(self.optimizer, int(steps * self.config["warmup_ratio"]), steps)
        self.optimizer.register_step_post_hook(lambda *_: self._after_step())
        if self.config["resume_from"] and processes.from_first((self.run_folder / RESUME).is_file):
            self.resume_checkpoint(self.run_folder / RESUME)
        result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        if self.epochs == 0 and valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            result = self.best_valid_score, self.best_valid_result
        if self._saves:
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
        rest = _Skipping(train_data, done_before, lambda: resumed and self._restore_random(resumed["random"]))
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
        self._batch = interaction
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
            raise ValueError(
                f"{error} in epoch {self._epoch['epoch']}; the rows of this batch are {self.model.row_ids(self._batch)}. "
                "Lower learning_rate, or set llm_dtype to float32 or bfloat16."
            ) from error

    def _after_step(self):
        self._schedule.step()
        self._epoch["done"] += 1
        if self._saves and time.monotonic() - self._last_save >= 60 * self.config["checkpoint_minutes"]:
            self._save_state(self._epoch["epoch"], self._epoch["done"], self._epoch["loss"])
            self._last_save = time.monotonic()

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
            "random": _random_state(),
            "cur_step": self.cur_step,
            "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result and {k: float(v) for k, v in self.best_valid_result.items()},
            "train_seconds": self.train_seconds,
        }
        # Lambda functions of the schedule are code; it makes them again.
        state["schedule"].pop("lr_lambdas", None)
        with replacing(self.run_folder / RESUME) as temporary:
            torch.save(state, temporary)

    def resume_checkpoint(self, resume_file):
        """Go on where an interrupted run stopped.

        Args:
            resume_file (str or pathlib.Path): the state in a run folder.
        """
        state = processes.from_first(lambda: torch.load(resume_file, map_location="cpu", weights_only=True))
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
        self.logger.info(f"Resuming from epoch {state['epoch']}, step {state['done']} of [{resume_file}]")

    @staticmethod
    def _restore_random(state):
        random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])

    def _neg_sample_batch_eval(self, batched_data):
        interaction, *rest = super()._neg_sample_batch_eval(batched_data)
        if PROMPT_DROPPED in interaction:
            self._dropped += int((interaction[PROMPT_DROPPED] > 0).sum())
        return interaction, *rest

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluate; the best model is the adapter in the run folder.

        Args:
            model_file (str, optional): another adapter folder.

        Returns:
            collections.OrderedDict: metric -> value.
        """
        if not eval_data:
            return None
        if load_best_model:
            self.model.load_adapter(model_file or self.saved_model_file)
            self.logger.info(f"Loading the adapter from {model_file or self.saved_model_file}")
        self._dropped = 0
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self._log_dropped("evaluation")
        return result


def _random_state():
    python = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _new_folder(path):
    """Make a folder of a name that no other run has: two may start within the same second."""
    number, free = 1, path
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            free.mkdir()
            return free
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.name}~{number}")


class _Skipping:
    """The batches of a DataLoader but for the first few, which an interrupted run has been through."""

    def __init__(self, loader, skip, before_rest):
        self._loader, self._skip, self._before_rest = loader, skip, before_rest
        self.shuffle, self.sampler = loader.shuffle, loader.sampler

    def __iter__(self):
        batches = iter(self._loader)
        for _ in range(self._skip):
            next(batches)
        self._before_rest()
        yield from batches

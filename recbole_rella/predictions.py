"""KeepsPredictions: what every trainer here has beyond RecBole's, be the model ReLLa or built in.

The scores of evaluated rows are kept by row_id, the run folder is written, and no run is lost to a validation metric that cannot be
computed.
"""

import time
from pathlib import Path

import numpy as np
from recbole.utils import get_local_time

from recbole_rella import processes
from recbole_rella.config import scores_rows
from recbole_rella.metrics import why_not_measurable
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.run_folder import CHECKPOINT, begin_run


def row_ids_of(loader):
    """The row_ids of a data loader of our rows, int64 [n], in its data set's order."""
    return loader._dataset.inter_feat[ROW_ID].numpy()


class KeepsPredictions:
    """Mixed into a trainer of RecBole.

    Attributes:
        run_folder (pathlib.Path): where the run is written: resume_from or run_folder where given, else a new one.
        best_epoch (int or None): the epoch of the best validation score.
        predictions (dict): row_id and score of the rows of the last evaluation, numpy arrays.
        train_seconds (float): time in training epochs, without validation.
        chosen (dict or None): what a model without epochs chose on validation; JSON-able.
        fitted_values (int or None): how many numbers were fitted, where they are no parameters of torch.
    """

    assembly = None  # of ReLLa
    chosen = fitted_values = None

    def __init__(self, config, model):
        super().__init__(config, model)
        given = config["resume_from"] or config["run_folder"]
        name = f"{config['model']}-{config['dataset']}-{get_local_time()}"
        self.run_folder = Path(given).expanduser() if given else Path(self.checkpoint_dir) / name
        self._is_new = not given
        self.saved_model_file = str(self.run_folder / CHECKPOINT)
        self.best_epoch = None
        self._kept, self.predictions = [], {}
        self.train_seconds = 0.0

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        self._warn_of_unmeasurable(valid_data)
        if saved:
            if self._is_new:
                self.run_folder = processes.from_first(lambda: _new_folder(self.run_folder))
                self.saved_model_file = str(self.run_folder / Path(self.saved_model_file).name)
            if processes.is_first():
                self.run_folder.mkdir(parents=True, exist_ok=True)
                begin_run(self.run_folder, self.config, self.assembly, getattr(self.model, "identities", None))
        score, result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        return (score if np.isfinite(score) else float("nan")), result

    def _warn_of_unmeasurable(self, valid_data):
        """Tell before training, not after it, that the best epoch cannot be chosen."""
        if not valid_data or not scores_rows(self.config, "valid"):
            return
        rows = valid_data._dataset.inter_feat
        labels, users = (rows[self.config[field]].numpy() for field in ("LABEL_FIELD", "USER_ID_FIELD"))
        reason = why_not_measurable(self.config["valid_metric"], labels, users)
        if reason:
            self.logger.warning(
                f"valid_metric: {self.config['valid_metric']} cannot be computed on the {len(labels)} validation rows: {reason}. "
                "The last epoch is kept as the best one. Give the validation part more rows, or set valid_metric to LogLoss."
            )

    def _valid_epoch(self, valid_data, show_progress=False):
        """RecBole's; a score that is no number counts as good as the best one, so that the last epoch is kept."""
        score, result = super()._valid_epoch(valid_data, show_progress)
        return (self.best_valid_score if np.isnan(score) else score), result

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
        """RecBole's evaluate; `predictions` are those of its rows, none for an empty part.

        Returns:
            collections.OrderedDict or None: metric -> value.
        """
        self._kept = []
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        rows, scores = zip(*self._kept) if self._kept else ((np.empty(0, int),), (np.empty(0),))
        self.predictions = {"row_id": np.concatenate(rows), "score": np.concatenate(scores)}
        return result

    def parameter_counts(self):
        """Number of the model's parameters.

        Returns:
            dict: trainable (int), all (int).
        """
        if self.fitted_values is not None:
            return {"trainable": self.fitted_values, "all": self.fitted_values}
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return {"trainable": sum(n for n, trained in counts if trained), "all": sum(n for n, _ in counts)}


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

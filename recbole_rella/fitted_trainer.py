"""The trainer of models that are fitted at once (Bias, Tree), and what RecBole's trainers of LightGBM and XGBoost lack.

Both evaluate as every other model does: RecBole's evaluator, scores kept by row_id, a run folder, the same table.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import LightGBMTrainer, Trainer, XGBoostTrainer

from recbole_rella.metrics import USERS
from recbole_rella.model.boosted_columns import BoostedColumns
from recbole_rella.predictions import KeepsPredictions, row_ids_of
from recbole_rella.rows.fields import ROW_ID


class FittedAtOnceTrainer(KeepsPredictions, Trainer):
    """Fits a `FittedAtOnce` in what RecBole takes for one epoch. Nothing is saved of it: its run folder's settings fit it again.

    Args:
        config (recbole.config.Config): RecBole's.
        model (FittedAtOnce): the model.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.epochs = self.eval_step = 1  # whatever the other models of a comparison take

    def _build_optimizer(self, **kwargs):
        """None: there are no gradients."""

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit; a validation score (float) and result (dict), as RecBole's."""
        self._valid = row_ids_of(valid_data) if valid_data else np.empty(0, dtype=np.int64)
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """Fits the model; there is no loss to tell of, which RecBole shows as nan."""
        began = time.monotonic()
        self.model.fit_rows(row_ids_of(train_data), self._valid)
        self.train_seconds += time.monotonic() - began
        self.chosen, self.fitted_values = self.model.chosen, self.model.fitted_values()
        self.logger.info(f"{type(self.model).__name__}: {self.chosen}")
        return float("nan")

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Nothing: the model that is evaluated is the one that was fitted."""

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluate, of the model as it was fitted."""
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)


class _OnOurRows:
    """Mixed in between KeepsPredictions and RecBole's trainer of trees.

    As RecBole has them, these trainers make a feature of every column (row numbers, the row's own rating, times), cut sequences
    where they happen to end, fit the same trees once an epoch, and leave files in the folder of all runs. Here the columns are
    those of BoostedColumns, and the trees lie in the run folder. How many rounds are taken is chosen on validation, by the
    configuration's metric (AUC, else LogLoss); and so is whether ids and tokens are categories, which are better where there is
    nothing else to tell rows apart, and learned by heart where there is.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.epochs = self.eval_step = 1  # of lgb_num_boost_round or xgb_num_boost_round rounds
        self.convert_token_to_onehot = False
        self._metric = "auc" if self.valid_metric == "auc" else self.log_loss
        self._columns, self._categories = None, False
        self._own_params()

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit; the score of the best round is told of at its end."""
        with tempfile.TemporaryDirectory() as folder:
            self.temp_file = str(Path(folder) / f"trees{self.suffix}")
            self.temp_best_file = str(self.run_folder / f"trees{self.suffix}") if saved else self.temp_file
            result = super().fit(train_data, valid_data, verbose, saved, show_progress)
        self.best_epoch = None  # there are none
        if callback_fn:
            callback_fn(0, result[0])
        return result

    def _train_at_once(self, train_data, valid_data):
        began = time.monotonic()
        self._columns = BoostedColumns(train_data._dataset)
        if self._columns.left_out:
            self.logger.warning(f"{self.config['model']}: no columns for trees are {', '.join(self._columns.left_out)}.")
        found = []
        for self._categories in (True, False):
            self.boost_model = self.config["xgb_model"]  # RecBole goes on with the trees before
            super()._train_at_once(train_data, valid_data)
            score = self._best_score()
            found.append((score if self._metric == "auc" else -score, self._categories, self.model))
        _, self._categories, self.model = max(found, key=lambda one: one[0])
        self._keep_best_rounds()
        self.chosen["ids"] = "categories" if self._categories else "integers"
        self.logger.info(f"{self.config['model']}: {self.chosen}")
        self.train_seconds += time.monotonic() - began

    def _interaction_to_sparse(self, dataloader):
        dataset = dataloader._dataset
        return self._columns.of(dataset), dataset.inter_feat[self.label_field].numpy()

    def _valid_epoch(self, valid_data, show_progress=False):
        return super()._valid_epoch(valid_data)

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Nothing more: the trees lie in the run folder, in their library's own format."""

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        if not eval_data:
            return None
        rows = eval_data._dataset.inter_feat
        if self.eval_collector.register.need(USERS):
            self.eval_collector.data_struct.update_tensor(USERS, rows[self.config["USER_ID_FIELD"]])
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        self._kept.append((rows[ROW_ID].numpy(), self.eval_pred.numpy()))
        return result


class _LightGBM(_OnOurRows):
    suffix, log_loss = ".txt", "binary_logloss"

    def _own_params(self):
        # By default all rounds are tried; RecBole's lgb_params may say another early_stopping_round.
        self.params = {
            "early_stopping_round": self.num_boost_round,
            "deterministic": True,
            "num_threads": torch.get_num_threads(),
            "verbosity": -1,
            **self.params,
            "metric": self._metric,
            "seed": self.config["seed"],
        }

    def _interaction_to_lib_datatype(self, dataloader):
        data, label = self._interaction_to_sparse(dataloader)
        return self.lgb.Dataset(data, label, categorical_feature=self._columns.tokens if self._categories else [])

    def _best_score(self):
        return self.model.best_score["valid_1"][self._metric]

    def _keep_best_rounds(self):
        # Its `predict` and `save_model` take the best rounds by themselves.
        self.chosen = {"rounds": self.model.best_iteration}
        self.fitted_values = int(sum(tree["num_leaves"] for tree in self.model.dump_model()["tree_info"]))


class _XGBoost(_OnOurRows):
    suffix, log_loss = ".ubj", "logloss"

    def _own_params(self):
        self.params = {
            "nthread": torch.get_num_threads(),
            "verbosity": 0,
            **self.params,
            "eval_metric": [self._metric],
            "seed": self.config["seed"],
        }
        self.verbose_eval = False
        self.early_stopping_rounds = self.early_stopping_rounds or self.num_boost_round

    def _interaction_to_lib_datatype(self, dataloader):
        data, label = self._interaction_to_sparse(dataloader)
        types = ["q"] * len(self._columns.names)
        for place in self._columns.tokens if self._categories else []:
            types[place] = "c"
        return self.xgb.DMatrix(data, label, nthread=self.nthread, feature_types=types, enable_categorical=True)

    def _best_score(self):
        return self.model.best_score

    def _keep_best_rounds(self):
        self.chosen = {"rounds": self.model.best_iteration + 1}
        self.model = self.model[: self.chosen["rounds"]]
        self.fitted_values = sum(tree.count(":leaf=") for tree in self.model.get_dump())


def keeping_predictions(trainer_class):
    """The trainer of a built-in model on our rows: KeepsPredictions mixed in, and for trees what they need beside it."""
    trees = {LightGBMTrainer: _LightGBM, XGBoostTrainer: _XGBoost}
    between = [own for builtin, own in trees.items() if issubclass(trainer_class, builtin)]
    return type(trainer_class.__name__, (KeepsPredictions, *between, trainer_class), {})

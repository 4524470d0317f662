"""Metrics of scored rows, by scikit-learn; and two that RecBole lacks, as value metrics of RecBole: Accuracy and UAUC.

`metrics: ['AUC', 'LogLoss', 'Accuracy', 'UAUC']` then works for every model that is evaluated row by row.
"""

import numpy as np
import recbole.evaluator.register as registry
import recbole.trainer.trainer
from recbole.evaluator import Collector
from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

# What tables call those of `row_metrics`.
TITLES = {"auc": "AUC", "logloss": "LogLoss", "accuracy": "accuracy", "uauc": "UAUC"}
# What the Collector gathers for UAUC: the user of each scored row.
USERS = "data.users_of_rows"


def areas_of_users(labels, scores, users):
    """The AUC of each user who has rows of both labels.

    Args:
        labels (numpy.ndarray): 0 or 1, [n].
        scores (numpy.ndarray): float [n].
        users (numpy.ndarray): user of each row, int or str [n].

    Returns:
        tuple: AUCs, float [users that have one]; their numbers of rows, int of the same shape; how many users have none (int).
    """
    _, user, rows = np.unique(users, return_inverse=True, return_counts=True)
    order = np.argsort(user, kind="stable")
    positive, scores = np.asarray(labels)[order] > 0.5, np.asarray(scores)[order]
    positives = np.bincount(user[order], weights=positive, minlength=len(rows)).astype(int)
    begins, counts = np.cumsum(rows) - rows, (positives > 0) & (positives < rows)
    areas = []
    for begin, n, n_positive in zip(begins[counts], rows[counts], positives[counts]):
        # The area under the ROC curve from the ranks (Mann-Whitney), ties sharing theirs; scikit-learn's is equal, and slow
        # for thousands of small groups.
        ranks = rankdata(scores[begin : begin + n])[positive[begin : begin + n]]
        areas.append((ranks.sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive)))
    return np.array(areas), rows[counts], int(len(rows) - len(areas))


def user_auc(labels, scores, users):
    """UAUC: the mean of the AUCs of single users, weighted by their rows.

    Users whose rows have one label have no AUC: they are left out and counted. (GAUC, Zhu et al., KDD 2017, by another name.)

    Args:
        labels, scores, users: as for `areas_of_users`.

    Returns:
        dict: uauc (float, nan where no user has two labels), users (int, those that count), users_left_out (int).
    """
    areas, rows, left_out = areas_of_users(labels, scores, users)
    mean = float(np.average(areas, weights=rows)) if len(areas) else float("nan")
    return {"uauc": mean, "users": len(areas), "users_left_out": left_out}


def why_not_measurable(metric, labels, users):
    """Why a metric of scored rows cannot be computed, whatever the scores are.

    Args:
        metric (str): RecBole's name.
        labels (numpy.ndarray): 0 or 1, [n].
        users (numpy.ndarray): user of each row, [n].

    Returns:
        str or None: None where it can.
    """
    if metric.lower() == "auc" and len(np.unique(labels)) < 2:
        return f"all of them have the label {int(labels[0])}"
    if metric.lower() == "uauc" and not user_auc(labels, np.zeros(len(labels)), users)["users"]:
        return "no user has rows of both labels"
    return None


def row_metrics(labels, scores, users):
    """All metrics of scored rows, in full precision.

    Args:
        labels (numpy.ndarray): 0 or 1, [n].
        scores (numpy.ndarray): P(yes), in [0, 1], [n].
        users (numpy.ndarray): [n].

    Returns:
        dict: auc, logloss, accuracy (at 0.5), uauc (float); users, users_left_out (int). AUC is nan for one label alone.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    return {
        "auc": float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else float("nan"),
        "logloss": float(log_loss(labels, scores, labels=[0, 1])),
        "accuracy": float(accuracy_score(labels, scores > 0.5)),
        **user_auc(labels, scores, users),
    }


class Accuracy(AbstractMetric):
    """Part of the rows whose score is on their label's side of 0.5."""

    metric_type = EvaluatorType.VALUE
    metric_need = ["rec.score", "data.label"]
    smaller = False

    def calculate_metric(self, dataobject):
        """RecBole's hook: metric -> value."""
        scores, labels = (dataobject.get(name).numpy().ravel() for name in self.metric_need)
        return {"accuracy": round(float(((scores > 0.5) == (labels > 0.5)).mean()), self.decimal_place)}


class UAUC(AbstractMetric):
    """Per-user AUC, weighted by rows: see `user_auc`."""

    metric_type = EvaluatorType.VALUE
    metric_need = ["rec.score", "data.label", USERS]
    smaller = False

    def calculate_metric(self, dataobject):
        """RecBole's hook: metric -> value."""
        scores, labels, users = (dataobject.get(name).numpy().ravel() for name in self.metric_need)
        return {"uauc": round(user_auc(labels, scores, users)["uauc"], self.decimal_place)}


class _CollectorOfUsers(Collector):
    """RecBole's Collector, which also gathers the users of the scored rows where a metric needs them."""

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.register.need(USERS):
            self.data_struct.update_tensor(USERS, interaction[self.config["USER_ID_FIELD"]])

    def get_data_struct(self):
        collected = super().get_data_struct()
        for name in ("rec.score", "data.label"):
            # RecBole's metrics take a last dimension of one away, be it that of the rows.
            if name in collected and collected[name].shape == (1,):
                collected[name] = collected[name][:, None]
        if USERS in self.data_struct:
            del self.data_struct[USERS]
        return collected


def register():
    """Put the metrics where RecBole looks for them. Calling it twice is harmless."""
    for metric in (Accuracy, UAUC):
        name = metric.__name__.lower()
        registry.metrics_dict[name] = metric
        registry.metric_information[name] = metric.metric_need
        registry.metric_types[name] = metric.metric_type
    recbole.trainer.trainer.Collector = _CollectorOfUsers

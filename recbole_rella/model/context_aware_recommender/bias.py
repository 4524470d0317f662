r"""
Bias
################################################
Reference:
    Yehuda Koren. "Factor in the Neighbors: Scalable and Accurate Collaborative Filtering." in TKDD 2010 (section 2.1).

The cheapest model that is told what a prompt tells: the mean rating of the item and the running mean rating of the user. In closed
form; how much each mean is shrunk is chosen on validation.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recbole_rella.model.fitted_at_once import FittedAtOnce
from recbole_rella.rows.bias import RunningBias
from recbole_rella.rows.item_statistics import training_rows

# So many further ratings, equal to the mean, stand beside those of an item, and of a user.
WEIGHTS = (1, 3, 10, 30)


class Bias(FittedAtOnce):
    """Item mean plus running user mean, brought into [0, 1] by a logistic regression on that one number.

    Args:
        config (recbole.config.Config): its seed alone is read.
        dataset (KeepsRows): a built data set, or a part of one.
    """

    properties_files = ("ReLLa.yaml", "Bias.yaml")

    def fit_rows(self, train, valid):
        """Choose the two weights of `WEIGHTS` by validation AUC, and fit slope and intercept to the labels of training rows.

        The first training rows, before which nothing was rated, teach nothing. Without a validation AUC (no rows, or one label)
        both weights are 10. Where the rows that teach have one label, or there are none, a row is as likely as a training row.
        """
        bias, label = RunningBias(self.rows, self.histories), self.rows.label
        measurable = len(np.unique(label[valid])) == 2
        best = None
        for item in WEIGHTS if measurable else (10,):
            users = WEIGHTS if measurable else (10,)
            for user, scores in zip(users, bias.scores(item, users)):
                area = float(roc_auc_score(label[valid], scores[valid])) if measurable else float("nan")
                if best is None or area > best[0]:
                    best = area, item, user, scores
        _, item, user, self._value = best
        told = train[np.isfinite(self._value[train])]
        if len(np.unique(label[told])) == 2:
            line = LogisticRegression(C=np.inf).fit(self._value[told, None], label[told])
            self._slope, self._intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
        else:
            liked = int(label[train].sum())
            self._slope, self._intercept = 0.0, float(np.log((liked + 1) / (len(train) - liked + 1)))
        self.chosen = {"item_shrinkage": item, "user_shrinkage": user}

    def scores(self, row_ids):
        """P(yes) of rows, float64 [n]; one half where nothing was rated before the row."""
        from_half = self._slope * self._value[row_ids] + self._intercept
        return 1 / (1 + np.exp(-np.nan_to_num(from_half, nan=0.0)))

    def fitted_values(self):
        """The means of the items that have training rows, slope and intercept."""
        return len(np.unique(self.rows.item[training_rows(self.rows)])) + 2

r"""
Tree
################################################
Reference:
    Guolin Ke et al. "LightGBM: A Highly Efficient Gradient Boosting Decision Tree." in NIPS 2017, as scikit-learn has it
    (HistGradientBoostingClassifier).

Boosted trees on the numbers of a row's history (`history_fields`), and on nothing else: no ids, no fields of users or items. What
can be read out of the past in numbers.
"""

from itertools import islice

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

from recbole_rella.data.history_columns import history_table
from recbole_rella.key_rules import DEFAULT_HISTORY, history_names
from recbole_rella.model.fitted_at_once import FittedAtOnce
from recbole_rella.rows.history import TEST


class Tree(FittedAtOnce):
    """scikit-learn's boosted trees; how many of them is chosen on our validation rows, not on a part of the training rows.

    Reads the numbers that history_fields names, or the default ones.

    Args:
        config (recbole.config.Config): with tree_rounds, tree_learning_rate and tree_leaves.
        dataset (KeepsWords and KeepsRows): a built data set, or a part of one.

    Attributes:
        names (tuple of str): what is read.
    """

    properties_files = ("ReLLa.yaml", "Tree.yaml")
    own_keys = (
        *FittedAtOnce.own_keys,
        "tree_rounds",
        "tree_learning_rate",
        "tree_leaves",
        "history_fields",
        "category_field",
        "cache_dir",
    )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.names = history_names(config["history_fields"] or [DEFAULT_HISTORY], dataset.category_field(), dataset.rows.timed)
        self._dataset = dataset
        self._by_area = config["valid_metric"].lower() == "auc"
        self._trees = HistGradientBoostingClassifier(
            max_iter=config["tree_rounds"],
            learning_rate=config["tree_learning_rate"],
            max_leaf_nodes=config["tree_leaves"],
            early_stopping=False,
            random_state=self.seed,
        )

    def fit_rows(self, train, valid):
        """Grow tree_rounds trees on training rows, and keep as many as are best on validation rows.

        Best is by AUC where that is the valid_metric and can be computed, else by LogLoss; without validation rows all are kept.
        """
        label = self.rows.label
        # Of the test rows, too: all at once, as that of a row stands on sums over its user's rows.
        self._known = np.unique(np.concatenate([train, valid, np.flatnonzero(self.rows.split == TEST)]))
        self._table = history_table(self._dataset, self.names, self._known)
        # scikit-learn finds no thresholds in a column without a value (similar_* of no behaviours); one value has none either.
        self._table[:, np.isnan(self.numbers(train)).all(axis=0)] = 0
        self._trees.fit(self.numbers(train), label[train])
        self._rounds = self._trees.n_iter_
        if len(valid):
            by_area = self._by_area and len(np.unique(label[valid])) == 2
            values = [
                roc_auc_score(label[valid], scores[:, 1]) if by_area else -log_loss(label[valid], scores[:, 1], labels=[0, 1])
                for scores in self._trees.staged_predict_proba(self.numbers(valid))
            ]
            self._rounds = int(np.argmax(values)) + 1
        self.chosen = {"rounds": self._rounds}

    def scores(self, row_ids):
        """P(yes) of rows among those that `fit_rows` got and the test rows, float64 [n]."""
        # scikit-learn has no other way to leave out the last trees.
        return next(islice(self._trees.staged_predict_proba(self.numbers(row_ids)), self._rounds - 1, None))[:, 1]

    def numbers(self, row_ids):
        """What is read of rows, float32 [n, names]; nan where there is no value."""
        return self._table[np.searchsorted(self._known, row_ids)]

    def fitted_values(self):
        """The values of leaves, at most."""
        return self._rounds * self._trees.max_leaf_nodes

"""Is one model's AUC larger than another's on the same rows, or is that chance? A paired bootstrap over the rows (SciPy)."""

import numpy as np
from scipy.stats import bootstrap


class _WeightedAUC:
    """AUC of fixed scores when each row counts as often as a weight says; ties share their rank."""

    def __init__(self, labels, scores):
        self.order = np.argsort(scores, kind="stable")
        self.begins = np.flatnonzero(np.r_[True, np.diff(scores[self.order]) != 0])
        self.positive = (labels[self.order] > 0.5).astype(np.float64)

    def __call__(self, weights):
        """AUCs [b] for weights [b, rows]."""
        weights = weights[:, self.order]
        positives = np.add.reduceat(weights * self.positive, self.begins, axis=1)
        negatives = np.add.reduceat(weights * (1 - self.positive), self.begins, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        with np.errstate(invalid="ignore"):  # a draw of few rows may have none of a label: its AUC is nan
            return (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))


def paired_bootstrap(labels, scores, resamples=2000, seed=0):
    """Two-sided p-values of the differences in AUC between models, and confidence intervals of the AUCs.

    Rows are drawn with replacement, the same ones for all models; a model's AUC is the mean of those of its seeds.
    P-values are not corrected for the number of comparisons, and rows of one user are taken as independent. Draws of one label
    alone have no AUC, and count nowhere.

    Args:
        labels (numpy.ndarray): 0 or 1, [n].
        scores (dict): model -> scores, float [seeds, n].
        resamples (int): number of resamples; the smallest p-value is 2 / (those that have an AUC + 1).
        seed (int): of the resampling.

    Returns:
        tuple: p-values, float [models, models], 1 on the diagonal; low and high ends of 95% intervals, float [models, 2]. All nan
        where all rows have one label.
    """
    labels = np.asarray(labels)
    areas = [[_WeightedAUC(labels, np.asarray(one)) for one in of_model] for of_model in scores.values()]

    def statistic(drawn, axis=-1):
        weights = np.stack([np.bincount(rows, minlength=len(labels)) for rows in drawn])
        means = np.stack([np.mean([area(weights) for area in of_model], axis=0) for of_model in areas])
        return means[:, ~np.isnan(means).any(axis=0)]

    if len(np.unique(labels)) < 2:
        return np.full((len(scores), len(scores)), np.nan), np.full((len(scores), 2), np.nan)
    result = bootstrap(
        (np.arange(len(labels)),),
        statistic,
        n_resamples=resamples,
        batch=100,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    distribution = result.bootstrap_distribution
    differences = distribution[:, None] - distribution[None]
    drawn = distribution.shape[-1]
    smaller, larger = ((1 + side.sum(axis=-1)) / (drawn + 1) for side in (differences <= 0, differences >= 0))
    interval = np.stack([result.confidence_interval.low, result.confidence_interval.high], axis=1)
    return np.minimum(1.0, 2 * np.minimum(smaller, larger)), interval

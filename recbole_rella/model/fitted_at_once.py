"""FittedAtOnce: a model of our rows that is fitted in one go, on row_ids, without batches, epochs or gradients."""

import torch
from recbole.data.transform import Equal
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType

from recbole_rella.rows.fields import ROW_ID


class FittedAtOnce(AbstractRecommender):
    """Base of `Bias` and `Tree`. A subclass fits itself on rows and scores rows, both by row_id.

    Args:
        config (recbole.config.Config): with the keys of properties/model/ReLLa.yaml.
        dataset (KeepsRows): a built data set, or a part of one.

    Attributes:
        chosen (dict): what was chosen on the validation rows; JSON-able; empty before `fit_rows`.
    """

    type = ModelType.CONTEXT
    input_type = InputType.POINTWISE
    # Which of our keys it reads, but for those of the rows; the data set and the run folder have some, too.
    own_keys = ("train_shots", "expected_counts", "run_folder")
    transform = Equal

    def __init__(self, config, dataset):
        super().__init__()
        self.rows, self.histories = dataset.rows, dataset.histories
        self.seed = config["seed"]
        self.chosen = {}

    def fit_rows(self, train, valid):
        """Learn from the labels of training rows; choose by those of validation rows.

        Args:
            train, valid (numpy.ndarray): row_ids, int [n]; `valid` may be empty.
        """
        raise NotImplementedError

    def scores(self, row_ids):
        """P(yes) of rows.

        Args:
            row_ids (numpy.ndarray): int [n].

        Returns:
            numpy.ndarray: float64 [n], in [0, 1].
        """
        raise NotImplementedError

    def fitted_values(self):
        """How many numbers were fitted.

        Returns:
            int: the parameters, in the terms of other models.
        """
        raise NotImplementedError

    def predict(self, interaction):
        """RecBole's hook: P(yes) of the rows of an interaction, float32 [n].

        Scores are those of the rows as the data has them: where RecBole samples other items, there are none.
        """
        return torch.from_numpy(self.scores(interaction[ROW_ID].cpu().numpy())).float().to(interaction[ROW_ID].device)

"""The data set of a built-in model that runs side by side with others: on the rows of split_file, and on nothing else."""

from contextlib import contextmanager

import recbole.data.dataset
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import InputType, ModelType

from recbole_rella.data.row_dataset import KeepsRows
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.split import SplitError


class _SameRows(KeepsRows):
    """For a built-in model: the rows of split_file, and nothing else that the model could see.

    Sequential models get their histories as RecBole builds them, from all rows of the user, those that min_history drops
    included; but in the order of the row_ids, as RecBole's times are rounded and would show a later row of the same minute.
    """

    def build(self):
        parts = self._split()
        # The row_id stays a column, by which predictions are named, but is no field of which a model makes a feature. Nor is the
        # rating of the row itself, where labels are not made of it: it is the answer. Ratings of the past may be seen.
        row_ids = ROW_ID + (self.config["LIST_SUFFIX"] or "_list")
        for properties in (self.field2type, self.field2source, self.field2seqlen, self.field2id_token):
            for field in (ROW_ID, row_ids, self.config["RATING_FIELD"]):
                properties.pop(field, None)
        for part in parts:
            part.inter_feat.interaction.pop(row_ids, None)
        return parts


def learns_from_labels(model_class):
    """Whether a model is context-aware or sequential, and trained on the labels of rows (as FM, DCNV2, DIN, DIEN)."""
    kind, rows = getattr(model_class, "type", None), getattr(model_class, "input_type", None)
    return kind in (ModelType.CONTEXT, ModelType.SEQUENTIAL) and rows == InputType.POINTWISE


@contextmanager
def same_rows(config):
    """Within this context RecBole's ``create_dataset`` makes the data set of a built-in model on the rows of split_file.

    RecBole looks for a class named after the model first; that is where ours is, for as long.

    Args:
        config (recbole.config.Config): of a model that `learns_from_labels`.

    Raises:
        SplitError: the model is of another kind, or would learn from sampled items instead of the rows' labels.
    """
    if not learns_from_labels(config.model_class):
        raise SplitError(
            f"model: expected a context-aware or a sequential model that learns from labels (as FM, DCNV2, DIN, DIEN), found "
            f"{config['model']}, which would not be trained on the labels of these rows."
        )
    if config["train_neg_sample_args"]["distribution"] != "none":
        raise SplitError(
            f"train_neg_sample_args: expected none, so that {config['model']} learns from the rows of split_file and their labels "
            f"(RecBole's default for sequential models is to sample), found {config['train_neg_sample_args']}."
        )
    module, name = recbole.data.dataset, f"{config['model']}Dataset"
    earlier = getattr(module, name, None)
    base = earlier or (SequentialDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else Dataset)
    ours = type(f"SameRows{name}", (_SameRows, base), {"__module__": __name__})
    # Some models hold their data set, and RecBole pickles them: the class must be found by its name.
    globals()[ours.__name__] = ours
    setattr(module, name, ours)
    try:
        yield
    finally:
        setattr(module, name, earlier) if earlier else delattr(module, name)

"""What a model reads of a row, in a few words: what stands in the table of models, so that nobody compares blind with seeing ones.

It follows from the class of the model and the settings and columns of its run, here and nowhere else.
"""

from recbole.data.dataset import Dataset
from recbole.utils import FeatureType, ModelType

from recbole_rella.config import is_ours, is_rella
from recbole_rella.key_rules import MEAN_EMBEDDING
from recbole_rella.rows.fields import ROW_ID, history_column

# In the order in which a table has them. Past ratings are past labels where the data has no ratings; history features are numbers
# made of past ratings (history_fields).
IDS, FEATURES, HISTORY_FEATURES = "ids", "features", "history features"
PAST_ITEMS, PAST_RATINGS, TEXT = "past items", "past ratings", "text"
WORDS = (IDS, FEATURES, HISTORY_FEATURES, PAST_ITEMS, PAST_RATINGS, TEXT)


def words_read(config, dataset):
    """What the model of a run reads of a row.

    Args:
        config (recbole.config.Config): of the run.
        dataset (recbole.data.dataset.Dataset): its built data set, or a part of it.

    Returns:
        list of str: among WORDS, in their order.
    """
    name, history = config["model"], config["history_fields"] or []
    numbers = [field for field in history if field != MEAN_EMBEDDING]
    if is_rella(config.model_class):
        # What a template of one's own leaves out of the default one is not looked for; what it adds is.
        prompter = dataset.assembly.prompter
        told = prompter.features is not None or (prompter.soft is not None and "history" in prompter.soft.kinds)
        # A conventional model has learned its vectors from ids.
        found = {TEXT, PAST_RATINGS, *([HISTORY_FEATURES] if told else []), *([IDS] if config["crm"] else [])}
    elif name == "Bias":
        found = {PAST_RATINGS}
    elif name == "Tree":
        found = {HISTORY_FEATURES}
    elif name == "SIM":
        found = {IDS, PAST_ITEMS, *_features(config, dataset), *([HISTORY_FEATURES] if numbers else [])}
        found |= {PAST_RATINGS} if config["sim_read_ratings"] or MEAN_EMBEDDING in history else set()
    elif is_ours(config.model_class):
        raise NotImplementedError(f"{name} is a model of ours: say here what it reads.")
    elif config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        # RecBole's sequential models that learn from labels (DIN, DIEN) embed past items with the fields of the items. The
        # data set has the ratings of the past for them, and they do not look at these.
        found = {IDS, PAST_ITEMS, *_features(config, dataset)}
    else:
        found = {IDS, *_features(config, dataset), *([HISTORY_FEATURES] if numbers else [])}
        found |= {PAST_ITEMS, PAST_RATINGS} if MEAN_EMBEDDING in history else set()
    return [word for word in WORDS if word in found]


def _features(config, dataset: Dataset):
    """FEATURES, where fields beside ids are loaded of which a model makes features."""
    others = {dataset.uid_field, dataset.iid_field, dataset.label_field, dataset.time_field, ROW_ID, config["RATING_FIELD"]}
    others.add(config["ITEM_LIST_LENGTH_FIELD"])
    numbers = set(config["numerical_features"] or ())
    is_tree = config["MODEL_TYPE"] == ModelType.DECISIONTREE
    for field, kind in dataset.field2type.items():
        if field in others or field.startswith(history_column("")) or field.endswith(config["LIST_SUFFIX"] or "_list"):
            continue
        if kind in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ) or field in numbers or is_tree:
            return {FEATURES}
    return set()

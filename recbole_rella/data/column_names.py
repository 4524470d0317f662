"""What RecBole calls the columns of the files, where two files have columns of one name.

RecBole knows a column by its name alone: of two it keeps the type and the values of the one that it loads last, and when it joins
the features of users and items onto rows they replace the rows' columns of that name. Such a column gets the name of its file
before its own (item.label), in RecBole alone: prompts and load_col call it what the file does.
"""

from recbole_rella.atomic.errors import DatasetError
from recbole_rella.rows.fields import OURS

# Settings of RecBole that name columns of any file.
_NAME_COLUMNS = ("val_interval", "seq_len", "numerical_features", "normalize_field", "discretization")


def names_in_recbole(columns, config):
    """The columns that RecBole must know by another name.

    Args:
        columns (dict): suffix of the file (inter, user, item, ...) -> names of its columns that are loaded.
        config (mapping): RecBole's settings.

    Returns:
        dict: suffix -> dict of name in the file -> name in RecBole, for those that change.

    Raises:
        DatasetError: a setting names a column that stands in two files.
    """
    ids = {"user": config["USER_ID_FIELD"], "item": config["ITEM_ID_FIELD"]}
    rows = set(columns.get("inter", ()))
    suffix = config["LIST_SUFFIX"] or ""
    lists = {config["ITEM_LIST_LENGTH_FIELD"], *(name + suffix for name in rows if suffix)}
    # Columns that RecBole or this package adds to the rows, or takes for theirs.
    added = {*OURS, *(lists if config["benchmark_filename"] is None else ())}
    answers = {config["LABEL_FIELD"], config["RATING_FIELD"], config["TIME_FIELD"]}
    own = {*ids.values(), *answers, f"{config['NEG_PREFIX']}{ids['item']}", *lists}
    features = {kind: [name for name in names if name != ids.get(kind)] for kind, names in columns.items() if kind != "inter"}
    several = [name for kind, names in features.items() for name in names]
    renamed = {"inter": [name for name in columns.get("inter", ()) if name in added]}
    for kind, names in features.items():
        renamed[kind] = [name for name in names if name in rows | own | added or several.count(name) > 1]
    for key in _NAME_COLUMNS:
        for name in config[key] or ():
            if name not in rows and several.count(name) > 1:
                kinds = [kind for kind, names in features.items() if name in names]
                raise DatasetError(
                    f"{key}: expected a column of one file, found {name!r}, which stands in .{' and .'.join(kinds)}; write "
                    f"{' or '.join(f'{kind}.{name}' for kind in kinds)}."
                )
    names = {kind: {name: f"{kind}.{name}" for name in found} for kind, found in renamed.items()}
    for kind, found in names.items():
        taken = [name for name in found.values() if any(name in others for others in columns.values())]
        if taken:
            raise DatasetError(
                f"Expected no column {taken[0]!r}, the name of another column of .{kind} in RecBole; rename one of them."
            )
    return names

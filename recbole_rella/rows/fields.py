"""Names of the columns that ours add to an Interaction of RecBole."""

ROW_ID = "row_id"
# Which behaviours the prompt of a row shows: the latest ones, those closest to the target, or some of the latest and the closest
# among the others. The column holds the code; the name is that of train_history, eval_history and everything written.
KIND = "history_kind"
RECENT, RETRIEVED, BOTH = 0, 1, 2
KINDS = {"recent": RECENT, "retrieved": RETRIEVED, "both": BOTH}
# Of a prompt: its token ids, how many they are, the item that it asks about, and the behaviours that the token budget removed.
PROMPT_IDS, PROMPT_LENGTH, PROMPT_ITEM, PROMPT_DROPPED = "prompt_ids", "prompt_length", "prompt_item", "prompt_dropped"
# The vectors of those of its soft tokens that belong to the row.
PROMPT_VECTORS = "prompt_vectors"
# Of the behaviours that a network reads, recent ones and searched ones: their items, answers and time gaps, and the target for
# which they were found. A dot keeps these names, as all that follow, from the fields of a file.
BEHAVIOUR_COLUMNS = tuple(tuple(f"{branch}.{what}" for what in ("items", "answers", "gaps")) for branch in ("recent", "searched"))
BEHAVIOURS_FOR = "behaviours.for"
# Of a row's history, for models that read no prompts: the items of the latest behaviours and their answers.
HISTORY_ITEMS, HISTORY_ANSWERS = "history.items", "history.answers"
# No column of a file keeps one of these names in RecBole.
OURS = (ROW_ID, KIND, PROMPT_IDS, PROMPT_LENGTH, PROMPT_ITEM, PROMPT_DROPPED, PROMPT_VECTORS)


def history_column(name):
    """The column of a number of the history, by its name in history_fields."""
    return f"history.{name}"

"""Names of the columns that ours add to an Interaction of RecBole."""

ROW_ID = "row_id"
# Whether the prompt of a row shows retrieved behaviours (1) or recent ones (0).
RETRIEVED = "retrieved"
# Of a prompt: its token ids, how many they are, the item that it asks about, and the behaviours that the token budget removed.
PROMPT_IDS, PROMPT_LENGTH, PROMPT_ITEM, PROMPT_DROPPED = "prompt_ids", "prompt_length", "prompt_item", "prompt_dropped"
# No column of a file keeps one of these names in RecBole.
OURS = (ROW_ID, RETRIEVED, PROMPT_IDS, PROMPT_LENGTH, PROMPT_ITEM, PROMPT_DROPPED)

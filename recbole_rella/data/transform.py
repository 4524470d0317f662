"""PromptTransform: RecBole's transform hook that turns rows into prompts, in the DataLoader's workers."""

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_rella.config import scores_rows
from recbole_rella.llm.scoring import pad
from recbole_rella.rows.fields import KIND, PROMPT_DROPPED, PROMPT_IDS, PROMPT_ITEM, PROMPT_LENGTH, PROMPT_VECTORS, ROW_ID

_PROMPT_FIELDS = {PROMPT_IDS, PROMPT_LENGTH, PROMPT_ITEM, PROMPT_DROPPED, PROMPT_VECTORS}


class PromptedRows(Interaction):
    """An Interaction with prompts, which stay on the CPU: the LLM takes their tokens in its own batches, when it needs them."""

    def to(self, device, selected_field=None):
        """RecBole's `to`, but for the prompts."""
        fields = {selected_field} if isinstance(selected_field, str) else set(selected_field or self.interaction)
        return PromptedRows(super().to(device, fields - _PROMPT_FIELDS).interaction)


class PromptTransform:
    """Interaction -> Interaction with the prompts' token ids.

    RecBole calls it as (dataset, interaction) in every collate. See `with_prompts`.

    Where RecBole samples negative items, it does so after this hook, and for one user at a time: the prompts are then
    left to the model, which makes those that are missing.
    """

    def __init__(self, config):
        self._scores_rows = scores_rows(config)
        self._item = config["ITEM_ID_FIELD"]

    def __call__(self, dataset, interaction):
        return with_prompts(dataset.assembly.prompter, interaction, self._item) if self._scores_rows else interaction


def with_prompts(prompter, interaction, item_field):
    """The interaction with the prompts of its rows about its items; as it is, where it has them already.

    Args:
        prompter (Prompter): makes them.
        interaction (Interaction): n rows with row_id, the kind of their histories and the target item.
        item_field (str): name of the target item's column.

    Returns:
        PromptedRows: with prompt_ids (int64 [n, longest], 0-padded), prompt_length (int64 [n]), prompt_item (int64 [n], the item
        that the prompt asks about) and prompt_dropped (int64 [n], behaviours that the token budget removed), on the CPU; and where
        soft tokens belong to the row, prompt_vectors (float32 [n, D]).
    """
    targets = interaction[item_field].cpu()
    if PROMPT_ITEM in interaction and torch.equal(interaction[PROMPT_ITEM].cpu(), targets):
        return interaction
    targets = targets.numpy()
    rows = interaction[ROW_ID].cpu().numpy()
    ids, dropped = prompter.token_ids(rows, targets, interaction[KIND].cpu().numpy())
    prompts = {
        PROMPT_IDS: pad(ids),
        PROMPT_LENGTH: torch.tensor([len(i) for i in ids]),
        PROMPT_ITEM: torch.from_numpy(targets.astype(np.int64)),
        PROMPT_DROPPED: torch.tensor(dropped),
    }
    if (vectors := prompter.soft_vectors(rows, targets)) is not None:
        prompts[PROMPT_VECTORS] = torch.from_numpy(vectors)
    return PromptedRows({**interaction.interaction, **prompts})

"""PromptTransform: RecBole's transform hook that turns rows into prompts, in the DataLoader's workers."""

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_rella.llm.scoring import pad
from recbole_rella.rows.fields import PROMPT_DROPPED, PROMPT_IDS, PROMPT_ITEM, PROMPT_LENGTH, RETRIEVED, ROW_ID


class PromptTransform:
    """Interaction -> Interaction with the prompts' token ids.

    RecBole calls it as (dataset, interaction) in every collate. It adds prompt_ids (int64 [n, longest], 0-padded),
    prompt_length (int64 [n]), prompt_item (int64 [n], the item that the prompt asks about) and prompt_dropped (int64
    [n], behaviours that the token budget removed).

    Where RecBole samples negative items, it does so after this hook, and for one user at a time: the prompts are then
    left to the model, which makes those that are missing.
    """

    def __init__(self, config):
        modes = config["eval_args"]["mode"].values()
        self._labeled = all(mode == "labeled" for mode in modes)
        self._item = config["ITEM_ID_FIELD"]

    def __call__(self, dataset, interaction):
        if self._labeled:
            interaction.update(prompts(dataset.prompter, interaction, self._item))
        return interaction


def prompts(prompter, interaction, item_field):
    """The prompts of an Interaction with row_id, retrieved and the target item, as the Interaction described above."""
    rows, targets = interaction[ROW_ID].cpu().numpy(), interaction[item_field].cpu().numpy()
    ids, dropped = prompter.token_ids(rows, targets, interaction[RETRIEVED].cpu().numpy().astype(bool))
    return Interaction(
        {
            PROMPT_IDS: pad(ids),
            PROMPT_LENGTH: torch.tensor([len(i) for i in ids]),
            PROMPT_ITEM: torch.from_numpy(targets.astype(np.int64)),
            PROMPT_DROPPED: torch.tensor(dropped),
        }
    )

"""ReLLaDataset: rows in words, and the samples of ReiT."""

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions

from recbole_rella.ahead import rows_ahead
from recbole_rella.data.assembly import assemble
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.data.worded import KeepsWords
from recbole_rella.key_rules import trained_kinds
from recbole_rella.keys import is_word
from recbole_rella.rows.fields import KIND, KINDS
from recbole_rella.run_folder import IDENTITIES, RunError, check_resumed, identities_of, read_run


class ReLLaDataset(KeepsWords, RowDataset):
    """The data set of ReLLa: rows with row_id, raw rating and time and a history, and the words of users and items.

    `build` splits as eval_args (or split_file) says, drops no further row, and gives the training split ReiT's samples.

    Attributes:
        rows (Rows), histories (Histories): as KeepsRows has them.
        words (dict), word_types (dict): as KeepsWords has them.
        assembly (Assembly): what makes prompts and scores of the rows; of the data set and its parts, once `build` has made it.

    Raises:
        RellaError: as KeepsRows.
    """

    assembly = None

    def shown_statistics(self, row_ids):
        """What the prompts of rows show on average, by eval_history (ReLLa, WWW 2024, figure 5: heterogeneity).

        Args:
            row_ids (numpy.ndarray): rows of the test split, int [n]; the data set is built.

        Returns:
            dict: history (eval_history), behaviours (mean number of shown ones), and with category_field set
            unique_values (mean number of different values of that item field among them).
        """
        kind, field = self.config["eval_history"], self.category_field()
        shown = self.assembly.prompter.shown(row_ids, self.rows.item[row_ids], np.full(len(row_ids), KINDS[kind]))
        statistics = {"history": kind, "behaviours": float(np.mean([len(s) for s in shown])) if len(shown) else 0.0}
        if field is not None and len(shown):
            values = self.item_values(field)
            statistics["field"] = field
            unique = [len(np.unique(values.pairs(self.rows.item[s])[1])) for s in shown]
            statistics["unique_values"] = float(np.mean(unique))
        return statistics

    def build(self):
        """Split; then ReiT's samples for the training split, and the prompts of all.

        Returns:
            list of ReLLaDataset: train (one row a sample: with train_history mixed each shot stands twice, with recent and
            with retrieved behaviours; with a list, once for each kind in it), valid, test.

        Raises:
            RellaError: an empty training split, training labels that are all equal, or what `assemble` cannot use; RunChangedError:
            the run to be resumed stood on something else.
        """
        self.category_field()
        parts = self._split()
        self.logger.info(rows_ahead(self.config, len(self.pool), [len(part.inter_feat) for part in parts]))
        train, *evaluated = parts
        train.inter_feat = cat_interactions(
            [self._with_kind(train.inter_feat, kind) for kind in trained_kinds(self.config["train_history"])]
        )
        for part in evaluated:
            part.inter_feat = self._with_kind(part.inter_feat, self.config["eval_history"])
        assembly = assemble(self, parts)
        if self.config["resume_from"]:  # before any weights are loaded
            run = read_run(self.config["resume_from"])
            run.check(identities_of(assembly), self.config["allow_changed"])
            check_resumed(run, self.config)
        if is_word("adapter_from", self.config["adapter_from"]):
            raise RunError(
                "adapter_from: expected the folder of a finished run, found ReLLa, which is tuned first where ReLLa is run by the "
                "command, by run_stages or side by side."
            )
        if self.config["adapter_from"]:
            _check_adapters(read_run(self.config["adapter_from"]), identities_of(assembly), self.config)
        for part in (self, *parts):
            part.assembly = assembly
        return parts

    @staticmethod
    def _with_kind(inter_feat, kind):
        columns = dict(inter_feat.interaction)
        columns[KIND] = torch.full((len(inter_feat),), KINDS[kind])
        return Interaction(columns)

    def join(self, df):
        """RecBole's join. Users without a row (full-sort evaluation) get the one from which they are seen, and its kind."""
        seen = self.with_first_rows(df)
        return super().join(df if seen is df else self._with_kind(seen, self.config["eval_history"]))


def _check_adapters(run, found, config):
    """Refuse adapters that fit another LLM, were tuned on rows that are held out here, or scale otherwise."""
    run.check(found, (set(IDENTITIES) - {"rows", "llm"}) | set(config["allow_changed"]))
    keys = ("lora_r", "lora_alpha", "lora_target_modules", "lora")
    expected = {key: run.given.get(key, config[key]) for key in keys}
    different = [f"{key} {value!r}, found {config[key]!r}" for key, value in expected.items() if value != config[key]]
    if different:
        raise RunError(f"adapter_from: expected the settings of the run in {run.folder}: {'; '.join(different)}.")

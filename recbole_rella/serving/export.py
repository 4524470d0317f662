"""A finished run for other programs: the LLM with its adapters merged in, as a Hugging Face folder; its prompts as JSON Lines.

A quantized LLM is dequantized first. (Over 8 bits scores still differ a little: bitsandbytes rounds a layer's input, too.) What
else a folder holds, and how exactly, says llm/merged_folder.py.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from recbole_rella.data.rellax import make_rellax
from recbole_rella.errors import RellaError
from recbole_rella.files import AnyPath, check_folder, is_new, replacing, replacing_folder, write_text
from recbole_rella.llm.backbone import with_adapter
from recbole_rella.llm.merged_folder import write_merged
from recbole_rella.quick_start import load_run_data
from recbole_rella.rows.fields import KIND, KINDS, ROW_ID
from recbole_rella.run_folder import ADAPTER
from recbole_rella.serving.model_card import model_card

SPLITS = ("train", "valid", "test")
_AT_A_TIME = 1024


class ExportError(RellaError):
    """A run cannot be exported so; the message says why."""


class Export:
    """A finished run with its data, LLM and tokenizer, but without the weights of the LLM before they are asked for.

    Args:
        run_folder (str or pathlib.Path): as a run of ReLLa left it (its data set must be where it was).
        allow_changed (iterable of str): as for `load_data_and_model`.

    Raises:
        RunError: the folder holds no run of ReLLa; RunChangedError: it is another data set, LLM, encoder, prompt or version.
    """

    def __init__(self, run_folder: AnyPath, allow_changed: str | Iterable[str] = ()) -> None:
        self.run, config, self.dataset, loaders = load_run_data(run_folder, allow_changed)
        self._parts = dict(zip(SPLITS, (loader._dataset for loader in loaders)))
        self._config = config
        self._answers = tuple(config["prompt_answers"])

    def write_model(self, folder: AnyPath) -> None:
        """Write weights, configuration, generation settings, the tokenizer with the chat template that was used, and a model card.

        Args:
            folder (str or pathlib.Path): new or empty; written whole or not at all. AutoModelForCausalLM and AutoTokenizer load it.

        Raises:
            ExportError: there is something in the folder. OutputError: there is no place for one.
            LLMError: the LLM, or the run's adapters, cannot be loaded.
        """
        folder = check_new(folder)
        self._refuse_rows()
        assembly, prompter = self.dataset.assembly, self.dataset.assembly.prompter
        backbone, soft = assembly.backbone, {}
        # Adapters were tuned on top of the weights as they were quantized, not on top of the ones before.
        base = backbone.model.dequantize() if backbone.quantization else backbone.model
        llm = with_adapter(base, self.run.folder / ADAPTER)
        if (rellax := make_rellax(self._config, llm, assembly, self._parts["train"].inter_feat[ROW_ID].numpy())) is not None:
            rellax.load(self.run.folder / ADAPTER)
            items = rellax.to(base.device).soft.of_items()
            soft = {} if items is None else {"items": items, "first": prompter.soft.first, "item_ids": prompter.item_ids}
        with replacing_folder(folder) as temporary:
            write_merged(llm, temporary, backbone.tokenizer, **soft)
            base_model = None if backbone.folder else backbone.path
            # Training rows are always there, test rows may not be.
            feat = next(self._parts[split].inter_feat for split in ("test", "train") if len(self._parts[split]))
            example = next(self._records(feat[ROW_ID].numpy()[:1], feat[KIND].numpy()[:1]))
            write_text(temporary / "README.md", model_card(self.run, base_model, example["prompt"], example["answers"]))

    def _refuse_rows(self):
        """Refuse what no folder of an LLM can hold: what is made of each row."""
        soft = self.dataset.assembly.prompter.soft
        if soft is not None and soft.kinds:
            raise ExportError(
                f"export: expected soft tokens of items alone (spa_tokens: behaviours, target) and no gates, found {soft.kinds}: "
                "vectors of users and rows, for which an exported LLM has no place. Score with Scorer."
            )

    def write_prompts(self, path: AnyPath, split: str = "test") -> int:
        """Write the prompts of a split as JSON Lines, whole or not at all, one object a row:

        row_id, user_id, item_id (the data set's own), label;
        history             which behaviours the prompt shows: recent, retrieved or both
        prompt              the text, chat format included
        add_special_tokens  what the tokenizer must be told to make prompt_token_ids of it
        prompt_token_ids    what the LLM reads; among it soft tokens of items, which the text does not show
        answers             yes and no: text (as it follows the prompt) and token_id
        score               P(yes) as the run found it, for rows of the test part

        Args:
            path (str or pathlib.Path): the file.
            split (str): train (the shots, each with the kinds of behaviours that it was tuned on), valid or test.

        Returns:
            int: rows written.

        Raises:
            ExportError: there is no such split, or its rows are others than those that the run scored.
            OutputError: there is no place for a file.
        """
        if split not in SPLITS:
            raise ExportError(f"export_split: expected one of {', '.join(SPLITS)}, found {split!r}.")
        self._refuse_rows()
        feat = self._parts[split].inter_feat
        rows, kinds = feat[ROW_ID].numpy(), feat[KIND].numpy()
        scores = self._scores(rows) if split == "test" else {}
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for begin in range(0, len(rows), _AT_A_TIME):
                part = slice(begin, begin + _AT_A_TIME)
                for record in self._records(rows[part], kinds[part]):
                    score = {"score": scores[record["row_id"]]} if scores else {}
                    file.write(json.dumps({**record, **score}, ensure_ascii=False) + "\n")
        return len(rows)

    def _records(self, row_ids, kinds):
        dataset, prompter = self.dataset, self.dataset.assembly.prompter
        rows, tokenizer, tokens = dataset.rows, prompter.tokenizer, dataset.field2id_token
        targets, names = rows.item[row_ids], {kind: name for name, kind in KINDS.items()}
        shown = prompter.shown(row_ids, targets, kinds)
        for row, target, kind, behaviours in zip(row_ids.tolist(), targets.tolist(), kinds.tolist(), shown):
            token_ids, kept = prompter.fitted(row, target, behaviours)
            text = prompter.text(row, target, kept)
            yield {
                "row_id": int(row),
                "user_id": str(tokens[dataset.uid_field][rows.user[row]]),
                "item_id": str(tokens[dataset.iid_field][target]),
                "label": None if rows.label is None else int(rows.label[row]),
                "history": names[kind],
                "prompt": tokenizer.framed(text),
                "add_special_tokens": bool(tokenizer.start),
                "prompt_token_ids": token_ids,
                "answers": {
                    name: {"text": tokenizer.joint(text) + word, "token_id": token}
                    for name, word, token in zip(("yes", "no"), self._answers, dataset.assembly.answer_ids)
                },
            }

    def _scores(self, rows):
        """Row_id -> P(yes) of the run's predictions; empty where it made none."""
        table = self.run.predictions()
        if table is None:
            return {}
        scores = dict(zip(table["row_id"].tolist(), table["score"].tolist()))
        if set(scores) != set(rows.tolist()):
            raise ExportError(
                f"Expected the test rows that {self.run.folder} scored, found others: its data set has changed. Run it again."
            )
        return scores


def check_new(folder):
    """A folder that does not exist yet, or is empty.

    Raises:
        ExportError: there is something in it, or it is a file. OutputError: what it would be in is no folder.
    """
    folder = Path(folder).expanduser()
    if not is_new(folder):
        raise ExportError(f"export: expected a new or an empty folder, found {folder}, which is neither.")
    return check_folder(folder, "export")

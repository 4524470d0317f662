"""From a row to the token ids of its prompt: choose the shown behaviours, render, tokenize, keep within the budget.

RowTexts gives texts; Prompter, which needs an LLM's tokenizer too, gives token ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from recbole_rella.errors import RellaError
from recbole_rella.prompt.soft_places import SoftPlaces
from recbole_rella.prompt.stored_prompts import StoredPrompts
from recbole_rella.prompt.template import FOR_PLACES, Behaviour, Others, PromptTemplate, as_numbers, places_of_marks
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.fields import BOTH, RECENT
from recbole_rella.rows.history import Histories, Rows
from recbole_rella.rows.numbers import as_in_file, in_whole

# How the retrieved behaviours stand, given closest first. Those of `both` that are there for being recent follow them, in time
# order, but where all shown behaviours stand in time order.
_ORDERS = {"time": np.sort, "recent_last": np.sort, "similarity": np.array, "similarity_reversed": np.flip}
# Rows on which a template is tried with marks.
_CHECKED = 20


class PromptBudgetError(RellaError):
    """A prompt does not fit into max_prompt_tokens even without any behaviour."""


def shown_by(settings):
    """What settings say of the behaviours that prompts show, by the names of RowTexts.

    Args:
        settings (Mapping): history_size, history_order, history_window, history_recent_size.
    """
    named = {name: settings[name] for name in ("history_size", "history_order", "history_window")}
    return {**named, "recent_size": min(settings["history_recent_size"], settings["history_size"])}


@dataclass(frozen=True, eq=False, kw_only=True)
class RowTexts:
    """Rows in words: which behaviours a prompt shows, and its text.

    Attributes:
        rows (Rows), histories (Histories): all rows.
        user_ids, item_ids (sequence of str): the data set's own id of every internal one, for messages.
        template (PromptTemplate): renders.
        history_size (int): K, the number of behaviours shown.
        history_order (str): time, recent_last, similarity (closest first) or similarity_reversed.
        history_window (str): latest or anchored, see `recent`.
        retriever (Retriever or None): finds the K closest behaviours; None where only recent ones are asked for.
        recent_size (int): R, how many of the K that `both` shows are the latest ones; at most K.
        features (HistoryFeatures or None): the numbers that the template prints; None where it prints none.
    """

    rows: Rows
    histories: Histories
    user_ids: list
    item_ids: list
    template: PromptTemplate
    history_size: int
    history_order: str
    retriever: object = None
    recent_size: int = 0
    history_window: str = "latest"
    features: HistoryFeatures | None = None

    def _behaviour(self, row):
        rows = self.rows
        return Behaviour(
            int(rows.item[row]),
            None if rows.rating is None else as_in_file(rows.rating[row]),
            None if rows.label is None else int(rows.label[row]),
            in_whole(rows.time[row].item()) if rows.timed else None,
        )

    def _others(self, history, shown):
        def columns():
            rest = history[~np.isin(history, shown)]
            return [column if column is None else column[rest] for column in (self.rows.label, self.rows.rating)]

        return Others(len(history) - len(shown), columns)

    def _parts(self, row, target, shown):
        """What the template lays out, by the names of its arguments."""
        return {
            "user": int(self.rows.user[row]),
            "target": int(target),
            "behaviours": [self._behaviour(behaviour) for behaviour in shown],
            "others": self._others(self.histories.of(row), shown),
            "numbers": self.numbers(row, target),
        }

    def numbers(self, row, target):
        """The numbers of a row about an item that the template prints, str -> int, float or None."""
        return {} if self.features is None else as_numbers(self.features.names, self.features.of(row, [target])[0])

    def shown(self, rows, targets, kinds):
        """Which behaviours each prompt shows, in the order in which it shows them.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].
            kinds (numpy.ndarray): RECENT, RETRIEVED or BOTH of rows/fields.py, int [n].

        Returns:
            list of numpy.ndarray: row_ids, K each, fewer where the history has fewer; none twice.
        """
        chosen = [None] * len(rows)
        places = np.flatnonzero(kinds != RECENT)
        if len(places):
            for place, found in zip(places, self.retriever.closest(rows[places], targets[places])):
                recent_size = self.recent_size if kinds[place] == BOTH else 0
                chosen[place] = self._with_recent(rows[place], found[found >= 0], recent_size)
        for place in np.flatnonzero(kinds == RECENT):
            chosen[place] = self.recent(rows[place])
        return chosen

    def _with_recent(self, row, closest, recent_size):
        """The latest behaviours and the closest of the others, in their order; `closest` are the K closest of all.

        Of K, at most as many as are recent anyway can be left out: what remains is what a search among the others would find.
        """
        history = self.histories.of(row)
        recent = history[len(history) - min(recent_size, len(history)) :]
        others = closest[~np.isin(closest, recent)][: self.history_size - len(recent)]
        shown = np.concatenate([_ORDERS[self.history_order](others), recent])
        return np.sort(shown) if self.history_order == "time" else shown

    def recent(self, row):
        """The row_ids of the most recent behaviours of a row, oldest first, int32.

        They are the K latest. Where windows are anchored they begin at a multiple of K: K to 2K - 1 are shown then, and the prompts
        of K rows of a user in a row begin with the same behaviours, so that these go through the LLM once.
        """
        past = self.histories.of(row)
        begin = max(0, len(past) - self.history_size)
        if self.history_window == "anchored":
            begin -= begin % max(1, self.history_size)
        return past[begin:]

    def text(self, row, target, shown):
        """The text of one prompt; `shown` as from `shown`."""
        return self.template.text(**self._parts(row, target, shown))

    def check_marks(self, rows, **marks):
        """Check that prompts say the same with their parts marked, on some of these rows.

        Args:
            rows (numpy.ndarray): row_ids, int [n].
            **marks: as for `PromptTemplate.check_marks`.

        Raises:
            TemplateError: one does not.
        """
        for row in np.random.default_rng(0).choice(rows, size=min(_CHECKED, len(rows)), replace=False):
            self.template.check_marks(self._parts(row, self.rows.item[row], self.recent(row)), **marks)

    def document(self, row, shown):
        """The prompt of one row with its answer, and where answers and ratings stand: see `PromptTemplate`."""
        return self.template.document(**self._parts(row, self.rows.item[row], shown), label=int(self.rows.label[row]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompter(RowTexts):
    """Prompts of rows, as an LLM reads them.

    Attributes:
        tokenizer (PromptTokenizer): of the LLM.
        max_tokens (int): that a prompt may have.
        soft (SoftPlaces or None): the soft tokens of prompts; None where they have none.
        stored (Mapping): kind -> StoredPrompts, which are not made again.
    """

    tokenizer: PromptTokenizer
    max_tokens: int
    soft: SoftPlaces | None = None
    stored: Mapping[int, StoredPrompts] = field(default_factory=dict)

    def _ids(self, row, target, shown):
        """Token ids of one prompt, soft tokens included, whatever their number."""
        if self.soft is None or not self.soft.among_words:
            return self.tokenizer.ids(self.text(row, target, shown)) + ([] if self.soft is None else self.soft.of_row)
        text, places = places_of_marks(self.template.text(**self._parts(row, target, shown), **FOR_PLACES))
        numbers = sorted(places, key=places.get)
        ids, before = self.tokenizer.with_places(text, [places[number] for number in numbers])
        return self.soft.inserted(ids, dict(zip(numbers, before)), target, self.rows.item[shown].tolist())

    def soft_vectors(self, rows, targets):
        """The vectors of those soft tokens of prompts that belong to the row.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].

        Returns:
            numpy.ndarray or None: float32 [n, D]; None where prompts have none.
        """
        if self.soft is None:
            return None
        rows, targets = np.asarray(rows), np.asarray(targets)
        return self.soft.vectors(rows, targets, self.rows.item[rows] == targets)

    def fitted(self, row, target, shown):
        """Token ids of one prompt within the budget, and which behaviours it shows: the oldest go first (law 5).

        Args:
            row, target (int): row_id and item id.
            shown (numpy.ndarray): row_ids, in the order in which they are shown.

        Returns:
            tuple: list of int; those of `shown` that are left, in their order.

        Raises:
            PromptBudgetError: the prompt does not fit even without any behaviour.
        """
        ids = self._ids(row, target, shown)
        if len(ids) <= self.max_tokens:
            return ids, shown
        oldest_first = np.sort(shown)
        # The largest number of behaviours that fits; a bisection, as each try renders and tokenizes a prompt.
        fits, too_many, best = -1, len(shown), None
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            kept = shown[np.isin(shown, oldest_first[len(shown) - middle :])]
            ids = self._ids(row, target, kept)
            if len(ids) <= self.max_tokens:
                fits, best = middle, (ids, kept)
            else:
                too_many = middle
        if best is None:
            raise PromptBudgetError(
                f"max_prompt_tokens: the prompt of user {self.user_ids[self.rows.user[row]]} about item {self.item_ids[target]} "
                f"(row {row}) has {len(ids)} tokens without any behaviour; {self.max_tokens} are allowed. Raise max_prompt_tokens "
                "(the LLM's positions permitting), or shorten the profile, the question or the item's name."
            )
        return best

    def token_ids(self, rows, targets, kinds):
        """Token ids of prompts.

        Args:
            rows, targets, kinds (numpy.ndarray): int [n], as for `shown`.

        Returns:
            tuple: list of n lists of int; how many shown behaviours each prompt had to drop, list of int.

        Raises:
            PromptBudgetError: names a row that does not fit even without history.
        """
        rows, targets, kinds = (np.asarray(column) for column in (rows, targets, kinds))
        prompts = [self._stored(row, target, kind) for row, target, kind in zip(rows, targets, kinds)]
        new = np.flatnonzero([prompt is None for prompt in prompts])
        shown = self.shown(rows[new], targets[new], kinds[new])
        for place, row, target, behaviours in zip(new, rows[new], targets[new], shown):
            ids, kept = self.fitted(int(row), int(target), behaviours)
            prompts[place] = ids, len(behaviours) - len(kept)
        return [ids for ids, _ in prompts], [dropped for _, dropped in prompts]

    def _stored(self, row, target, kind):
        stored = self.stored.get(int(kind))
        place = stored.place(row) if stored is not None and self.rows.item[row] == target else None
        return None if place is None else stored[place]

    def check_budget(self, rows):
        """Raise PromptBudgetError now for a row that cannot fit even without history, rather than in the middle of a run.

        A text has at most one token a byte, so most rows need no tokenizing.
        """
        none = np.empty(0, dtype=np.int32)
        for row in np.unique(rows):
            target = self.rows.item[row]
            text, soft = self.text(row, target, none), 0 if self.soft is None else len(self.soft.of)  # at most
            if len(self.tokenizer.framed(text).encode()) + 8 + soft > self.max_tokens:
                self.fitted(int(row), int(target), none)

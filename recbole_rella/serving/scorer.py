"""Score users and items outside the training run: profiles, histories and items that were in no data set included.

A request is one user with candidates. It becomes rows of its own, which go through the same retrieval, template, tokenizer and
LLM as the rows of a data set.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from recbole_rella.data.preparation import template_texts
from recbole_rella.errors import RellaError
from recbole_rella.llm.scoring import p_yes, pad
from recbole_rella.prompt.prompter import Prompter
from recbole_rella.prompt.template import PromptTemplate
from recbole_rella.quick_start import load_data_and_model
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.history import NO_SPLIT, Histories, Rows


class RequestError(RellaError):
    """A request cannot be scored; the message says why."""


@dataclass(frozen=True)
class _Item:
    name: str  # what the result calls it
    words: tuple  # of (field, text)
    known: int | None  # RecBole's id, where its vector is there already


@dataclass(frozen=True)
class Asked:
    """Requests as rows: a prompter over them, the row from which each request is seen, and its candidates."""

    prompter: Prompter
    rows: np.ndarray  # int64 [candidates]
    targets: np.ndarray  # int64 [candidates], items of the prompter
    requests: np.ndarray  # int64 [candidates]
    names: list  # of str [candidates]


class Scorer:
    """A trained run, ready to score.

    Args:
        config, model, dataset: as `load_data_and_model` gives them.
    """

    def __init__(self, config, model, dataset):
        self.config, self.model, self.dataset = config, model, dataset
        self._texts = template_texts(config)
        self._ids = {
            kind: {token: place for place, token in enumerate(dataset.field2id_token[field])}
            for kind, field in (("user", dataset.uid_field), ("item", dataset.iid_field))
        }

    @classmethod
    def load(cls, run_folder):
        """The Scorer of a run folder (its data set must be where it was).

        Raises:
            FileNotFoundError: the folder holds no run.
        """
        config, model, dataset, *_ = load_data_and_model(run_folder)
        return cls(config, model, dataset)

    def score(self, candidates, user_id=None, profile=None, history=None):
        """P(yes) of candidate items for one user.

        Args:
            candidates (list): items, each an id of the data set, or a dict of item fields for one that it does not have.
            user_id (str, optional): a user of the data set, whose profile and rows count unless given here.
            profile (dict, optional): user fields; those that are not named have no value.
            history (list, optional): what the user did, each (item, rating, time) or a dict with item, rating, time and
                label; in any order. The label follows from the rating where the data set has a threshold.

        Returns:
            pandas.DataFrame: candidate (str), score (float, P(yes)), rank (int, 1 is the highest score), in the order given.

        Raises:
            RequestError: something in it is unknown or missing.
            PromptBudgetError: the prompt does not fit, even without history.
        """
        request = {"candidates": candidates, "user_id": user_id, "profile": profile, "history": history}
        return self.score_many([request]).drop(columns="request")

    def score_many(self, requests):
        """As `score`, for several requests at once.

        Args:
            requests (list of dict): with the keys that are the arguments of `score`.

        Returns:
            pandas.DataFrame: request (int, its place), candidate, score, rank.
        """
        asked = self.ask(requests)
        scores = self.score_rows(asked.prompter, asked.rows, asked.targets)
        table = pd.DataFrame({"request": asked.requests, "candidate": asked.names, "score": scores})
        ranks = table.groupby("request")["score"].rank(method="first", ascending=False)
        return table.assign(rank=ranks.astype(int))

    def score_rows(self, prompter, rows, targets, retrieved=None):
        """P(yes) of rows of a prompter.

        Args:
            prompter (Prompter): of the data set, or of `ask`.
            rows, targets (numpy.ndarray): int [n].
            retrieved (bool, optional): whether retrieved behaviours are shown; as eval_history by default.

        Returns:
            numpy.ndarray: float32 [n].
        """
        kind = self.config["eval_history"] == "retrieved" if retrieved is None else retrieved
        ids, _ = prompter.token_ids(rows, targets, np.full(len(rows), kind))
        return self.score_ids(ids)

    def score_ids(self, ids):
        """P(yes) of prompts.

        Args:
            ids (list of list of int): token ids.

        Returns:
            numpy.ndarray: float32 [n].
        """
        if not ids:
            return np.empty(0, dtype=np.float32)
        lengths = torch.tensor([len(i) for i in ids])
        budget, answers = self.config["eval_micro_tokens"], self.model.answer_ids
        return p_yes(self.model.llm, pad(ids), lengths, answers, budget, self.config["device"]).cpu().numpy()

    def ask(self, requests):
        """Requests as rows.

        Args:
            requests (list of dict): as for `score_many`.

        Returns:
            Asked: its prompter retrieves, renders and tokenizes as that of the data set does.

        Raises:
            RequestError: names what is unknown or missing.
        """
        items, columns, profiles, rows, targets, of, names = {}, [], [], [], [], [], []
        for place, request in enumerate(requests):
            unknown = set(request) - {"candidates", "user_id", "profile", "history", "id"}
            if unknown:
                raise RequestError(f"Expected the keys candidates, user_id, profile, history and id, found {sorted(unknown)}.")
            profile, history = self._user(request)
            profiles.append(profile)
            history.sort(key=lambda behaviour: behaviour[3])
            columns += [(place, self._local(items, item), *rest) for item, *rest in history]
            candidates = request.get("candidates")
            if not isinstance(candidates, (list, tuple)) or not candidates:
                raise RequestError(f"candidates: expected a list of items that is not empty, found {candidates!r}.")
            # The row from which the candidates are seen: after all of the history.
            columns.append((place, 0, 0.0, 0, history[-1][3] if history else 0))
            for candidate in candidates:
                item = self._item(candidate)
                rows.append(len(columns) - 1)
                targets.append(self._local(items, item))
                of.append(place)
                names.append(item.name)
        prompter = self._prompter(list(items), columns, profiles)
        return Asked(prompter, np.array(rows), np.array(targets), np.array(of), names)

    @staticmethod
    def _local(items, item):
        return items.setdefault(item, len(items))

    def _prompter(self, items, columns, profiles):
        """A Prompter over the rows of requests, with items and users numbered as they came."""
        dataset, config = self.dataset, self.config
        user, item, rating, label, time = (np.array(column) for column in zip(*columns))
        rows = Rows(
            user.astype(np.int32),
            item.astype(np.int32),
            time.astype(np.int64),
            None if dataset.rows.rating is None else rating.astype(np.float32),
            None if dataset.rows.label is None else label.astype(np.int8),
            np.full(len(user), NO_SPLIT, dtype=np.int8),
        )
        template = PromptTemplate(**self._texts, user_fields=profiles.__getitem__, item_fields=lambda i: dict(items[i].words))
        histories = Histories(rows, len(profiles))
        prompter = Prompter(rows, histories, template, config["history_size"], config["history_order"])
        prompter.tokenizer, prompter.max_tokens = dataset.prompter.tokenizer, dataset.prompter.max_tokens
        if dataset.item_space is not None:
            vectors = self._vectors(items, template)
            prompter.retriever = Retriever(
                rows, histories, vectors, config["history_size"], config["retrieval_metric"], config["retrieval_chunk_size"]
            )
        return prompter

    def _vectors(self, items, template):
        """The vectors of items: those of the catalogue as they are, new ones by its encoder."""
        space = self.dataset.item_space
        new = [place for place, item in enumerate(items) if item.known is None]
        vectors = space.vectors[[0 if item.known is None else item.known for item in items]].copy()
        if new:
            sentence = self.config["retrieval_sentence"]
            vectors[new] = space.encode([template.sentence(place, sentence) for place in new])
        return vectors

    def _words(self, kind, given):
        """All fields of a user or item, of which a request gives some."""
        table = self.dataset.words()[0 if kind == "user" else 1]
        unknown = set(given) - set(table)
        if unknown:
            raise RequestError(f"Expected fields of the {kind} among {sorted(table)}, found {sorted(unknown)}.")
        joint = self.config["seq_separator"]
        text = {
            field: joint.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            for field, value in given.items()
            if value is not None
        }
        return self.dataset.in_words({field: text.get(field, "") for field in table})

    def _known(self, kind, token):
        place = self._ids[kind].get(str(token))
        if not place:
            raise RequestError(
                f"{kind}: expected an id of the data set {self.config['dataset']}, found {token!r}. "
                f"Give a dict of its fields for {'an item' if kind == 'item' else 'a profile'} that the data set does not have."
            )
        return place

    def _item(self, item):
        if isinstance(item, dict):
            words = self._words("item", item)
            name = str(item.get(self.dataset.iid_field) or next((str(v) for v in item.values() if v), ""))
            return _Item(name, tuple(words.items()), None)
        place = self._known("item", item)
        return _Item(str(item), tuple(self.dataset.words_of("item", place).items()), place)

    def _user(self, request):
        """Profile and history of a request."""
        dataset, rows = self.dataset, self.dataset.rows
        user_id, profile, history = (request.get(key) for key in ("user_id", "profile", "history"))
        place = None if user_id is None else self._known("user", user_id)
        if profile is None:
            words = self._words("user", {}) if place is None else dataset.words_of("user", place)
        elif isinstance(profile, dict):
            words = self._words("user", profile)
        else:
            raise RequestError(f"profile: expected a dict of user fields, found {profile!r}.")
        if history is not None:
            if not isinstance(history, (list, tuple)):
                raise RequestError(f"history: expected a list of (item, rating, time), found {history!r}.")
            return words, [self._behaviour(behaviour) for behaviour in history]
        if place is None:
            return words, []
        tokens = dataset.field2id_token[dataset.iid_field]
        past = dataset.histories.row_ids[dataset.histories.start[place] : dataset.histories.start[place + 1]]
        return words, [
            (
                self._item(tokens[rows.item[row]]),
                0.0 if rows.rating is None else float(rows.rating[row]),
                0 if rows.label is None else int(rows.label[row]),
                int(rows.time[row]),
            )
            for row in past
        ]

    def _behaviour(self, behaviour):
        """(item, rating, label, time) of what a request gives for a behaviour."""
        if isinstance(behaviour, (list, tuple)) and len(behaviour) == 3:
            behaviour = dict(zip(("item", "rating", "time"), behaviour))
        if not isinstance(behaviour, dict) or not {"item", "time"} <= set(behaviour):
            raise RequestError(f"history: expected (item, rating, time) or a dict with these keys, found {behaviour!r}.")
        rows, rating, label = self.dataset.rows, behaviour.get("rating"), behaviour.get("label")
        try:
            time = int(float(behaviour["time"]))
            rating = None if rating is None else float(rating)
        except (TypeError, ValueError) as error:
            raise RequestError(f"history: expected numbers as rating and time, found {behaviour!r}.") from error
        if rows.rating is not None and (rating is None or not np.isfinite(rating)):
            raise RequestError(f"history: expected a rating in each behaviour, as in the data set, found {behaviour!r}.")
        if rows.label is not None and label is None:
            threshold = (self.config["threshold"] or {}).get(self.config["RATING_FIELD"])
            if threshold is None or rating is None:
                raise RequestError(f"history: expected a label (0 or 1) in each behaviour, found {behaviour!r}.")
            label = int(rating >= threshold)
        if label not in (None, 0, 1):
            raise RequestError(f"history: expected the label 0 or 1, found {label!r}.")
        return self._item(behaviour["item"]), rating or 0.0, label or 0, time

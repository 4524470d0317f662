"""Score users and items outside the training run: profiles, histories and items that were in no data set included.

A request is one user with candidates. It becomes rows of its own, which go through the same retrieval, template, tokenizer and
LLM as the rows of a data set.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel

from recbole_rella.engines import make_engine
from recbole_rella.files import AnyPath, fingerprint
from recbole_rella.key_rules import same_field
from recbole_rella.keys import affecting
from recbole_rella.llm.rellax import trained_identity
from recbole_rella.llm.scoring import p_yes, pad
from recbole_rella.prompt.prompter import Prompter, shown_by
from recbole_rella.prompt.template import PromptTemplate
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.quick_start import load_rella
from recbole_rella.retrieval.item_space import ItemSpace, MixedSpace
from recbole_rella.retrieval.rated_alike import RatedAlike
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.retrieval.taste import Taste
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.fields import KINDS
from recbole_rella.rows.history import NO_SPLIT, Histories, Rows
from recbole_rella.rows.item_statistics import ItemStatistics
from recbole_rella.rows.item_values import ItemValues
from recbole_rella.rows.numbers import as_in_file, as_whole
from recbole_rella.serving import saved_scorer
from recbole_rella.serving.catalogue import Catalogue, Did, Item, RequestError, in_utf8
from recbole_rella.serving.soft_requests import SoftRequests
from recbole_rella.version import VERSION

_KEYS = {"candidates", "user_id", "profile", "history", "time", "id"}


@dataclass(frozen=True)
class RequestRows:
    """Requests as rows: a prompter over them, the row from which each request is seen, and its candidates."""

    prompter: Prompter
    rows: np.ndarray  # int64 [candidates]
    targets: np.ndarray  # int64 [candidates], items of the prompter
    requests: np.ndarray  # int64 [candidates]
    names: list  # of str [candidates]


@dataclass(frozen=True, eq=False)
class Parts:
    """What scoring is made of, whether it comes from a run or from a saved scorer.

    Attributes:
        settings (Mapping): history_size, history_recent_size, history_order, history_window, eval_history, retrieval_metric,
            retrieval_sentence, eval_micro_tokens.
        texts (Mapping): of the template, by name.
        catalogue (Catalogue): items in words, and the fields of users.
        tokenizer (PromptTokenizer), max_tokens (int): as a Prompter has them.
        item_space (ItemSpace, MixedSpace or None): None where nothing is retrieved.
        statistics (ItemStatistics or None): of the training rows; None where prompts print no numbers of the history.
        alike (numpy.ndarray or None): vectors of items rated alike, float32 [items, D]; None where no number is made of them.
        taste (Taste or None), likes (ItemStatistics or None): as `HistoryFeatures` has them.
        llm (PeftModel): with the adapters of the run, in evaluation mode.
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        device (torch.device): of the LLM.
        soft (SoftRequests or None): of soft tokens and gates; None where there are none.
    """

    settings: Mapping
    texts: Mapping
    catalogue: Catalogue
    tokenizer: PromptTokenizer
    max_tokens: int
    item_space: ItemSpace | MixedSpace | None
    llm: PeftModel
    answer_ids: tuple
    device: torch.device
    soft: SoftRequests | None = None
    statistics: ItemStatistics | None = None
    alike: np.ndarray | None = None
    taste: Taste | None = None
    likes: ItemStatistics | None = None


def _numbers(prompter):
    """What a prompter knows of histories in numbers, for its template and for ReLLaX."""
    soft = {} if prompter.soft is None else prompter.soft.sources
    return filter(None, (prompter.features, soft.get("history")))


class Scorer:
    """A trained run, ready to score. Several threads may share one: they take turns at the LLM.

    Args:
        parts (Parts): what it is made of.
        config, dataset (optional): of the run, if its data set is there; users of the data set are then known by their id.
    """

    def __init__(self, parts: Parts, config: Any = None, dataset: Any = None) -> None:
        self.parts, self.config, self.dataset = parts, config, dataset
        self.engine = make_engine(parts.settings, parts.llm, parts.tokenizer.tokenizer, parts.answer_ids, parts.max_tokens)
        users = [] if dataset is None else dataset.user_ids
        self._user_places = {str(user): place for place, user in enumerate(users) if place}

    @classmethod
    def load(cls, run_folder: AnyPath, allow_changed: str | Iterable[str] = (), **engine: Any) -> "Scorer":
        """The Scorer of a run folder (its data set must be where it was).

        Args:
            run_folder (str or pathlib.Path), allow_changed (iterable of str): as for `load_data_and_model`.
            **engine: scoring_engine and vllm_args, as in a configuration; transformers by default, whatever scored the run.

        Raises:
            ConfigError: scoring_engine cannot be used; EngineError: it is not there.
            RunError: the folder holds no run of ReLLa; RunChangedError: it is another data set, LLM, encoder, prompt or version.
        """
        config, model, dataset, *_ = load_rella(run_folder, allow_changed, engine)
        assembly, catalogue = dataset.assembly, Catalogue.of(dataset)
        numbers = list(_numbers(assembly.prompter))

        def known(name):
            return next((value for features in numbers if (value := getattr(features, name)) is not None), None)

        alike = known("alike")
        parts = Parts(
            settings=config,
            texts=assembly.texts,
            catalogue=catalogue,
            tokenizer=assembly.prompter.tokenizer,
            max_tokens=assembly.prompter.max_tokens,
            item_space=assembly.item_space,
            llm=model.llm,
            answer_ids=assembly.answer_ids,
            device=config["device"],
            soft=None if model.rellax is None else SoftRequests.of(model.rellax, assembly.prompter.soft),
            statistics=known("statistics"),
            alike=None if alike is None else alike.vectors[-1],
            taste=known("taste"),
            likes=known("likes"),
        )
        return cls(parts, config, dataset)

    @property
    def kind(self) -> int:
        """Which behaviours its prompts show, a kind of rows/fields.py."""
        return KINDS[self.parts.settings["eval_history"]]

    @property
    def identity(self) -> str:
        """Names what scores are made of, str: another one may score the same request otherwise."""
        parts, rows = self.parts, None if self.dataset is None else self.dataset.rows
        known = () if rows is None else (rows.user, rows.item, rows.time)
        return fingerprint(
            VERSION,
            parts.llm.get_base_model().name_or_path,
            trained_identity(parts.llm, parts.soft and parts.soft.module),
            {key: parts.settings[key] for key in affecting("llm", "retrieval", "prompts", "evaluation")},
            {**parts.texts, "answers": list(parts.texts["answers"])},
            parts.catalogue.item_ids.astype(str),
            *known,
        )

    def save_pretrained(self, folder: AnyPath) -> None:
        """Save what scoring new users needs, without the data set: see saved_scorer.py.

        Args:
            folder (str or pathlib.Path): new or empty; written whole or not at all.

        Raises:
            ScorerError: there is something in the folder, or this scorer has no run behind it.
        """
        saved_scorer.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: AnyPath, device: str | torch.device | None = None, **engine: Any) -> "Scorer":
        """The Scorer that `save_pretrained` saved, on this machine or another.

        Args:
            folder (str or pathlib.Path): of the scorer.
            device (str or torch.device, optional): of the LLM; a GPU where there is one by default.
            **engine: as for `load`.

        Raises:
            ScorerError: the folder holds no scorer, or its LLM or encoder is not the one that it was saved with.
            ConfigError: scoring_engine cannot be used; EngineError: it is not there.
        """
        return cls(Parts(**saved_scorer.load(folder, device, engine)))

    def score(
        self,
        candidates: Sequence,
        user_id: str | None = None,
        profile: Mapping[str, Any] | None = None,
        history: Sequence | None = None,
        time: float | None = None,
    ) -> pd.DataFrame:
        """P(yes) of candidate items for one user.

        Args:
            candidates (list): items, each an id of the data set, or a dict of item fields for one that it does not have.
            user_id (str, optional): a user of the data set, whose profile and rows count unless given here.
            profile (dict, optional): user fields; those that are not named have no value.
            history (list, optional): what the user did, each (item, rating, time) or a dict with item, rating, time and
                label; in any order. The label follows from the rating where the data set has a threshold.
            time (float, optional): when the candidates are shown, in the unit of the data set; for prompts that print the days
                since the last behaviour, which have none without it.

        Returns:
            pandas.DataFrame: candidate (str), score (float, P(yes)), rank (int, 1 is the highest score), in the order given.

        Raises:
            RequestError: something in it is unknown or missing.
            PromptBudgetError: the prompt does not fit, even without history.
        """
        request = {"candidates": candidates, "user_id": user_id, "profile": profile, "history": history, "time": time}
        return self.score_many([request]).drop(columns="request")

    def score_many(self, requests: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """As `score`, for several requests at once.

        Args:
            requests (list of dict): with the keys that are the arguments of `score`.

        Returns:
            pandas.DataFrame: request (int, its place), candidate, score, rank.
        """
        if not requests:
            return pd.DataFrame({"request": [], "candidate": [], "score": [], "rank": []})
        asked = self.ask(requests)
        scores = self.score_rows(asked.prompter, asked.rows, asked.targets)
        table = pd.DataFrame({"request": asked.requests, "candidate": asked.names, "score": scores})
        ranks = table.groupby("request")["score"].rank(method="first", ascending=False)
        return table.assign(rank=ranks.astype(int))

    def score_rows(self, prompter: Prompter, rows: np.ndarray, targets: np.ndarray, history: str | None = None) -> np.ndarray:
        """P(yes) of rows of a prompter.

        Args:
            prompter (Prompter): of the data set, or of `ask`.
            rows, targets (numpy.ndarray): int [n].
            history (str, optional): which behaviours are shown: recent, retrieved or both; as eval_history by default.

        Returns:
            numpy.ndarray: float32 [n].
        """
        kind = self.kind if history is None else KINDS[history]
        ids, _ = prompter.token_ids(rows, targets, np.full(len(rows), kind))
        return self.score_ids(ids, prompter.soft_vectors(rows, targets))

    def score_ids(self, ids: Sequence[Sequence[int]], vectors: np.ndarray | None = None) -> np.ndarray:
        """P(yes) of prompts.

        Args:
            ids (list of list of int): token ids.
            vectors (numpy.ndarray, optional): of those soft tokens that belong to their rows, see `Prompter.soft_vectors`.

        Returns:
            numpy.ndarray: float32 [n].
        """
        if not ids:
            return np.empty(0, dtype=np.float32)
        parts, lengths = self.parts, torch.tensor([len(i) for i in ids])
        if self.engine is not None:
            return self.engine.p_yes(ids, parts.soft and parts.soft.module)
        budget = parts.settings["eval_micro_tokens"]
        known = None if vectors is None else torch.from_numpy(vectors)
        with nullcontext(pad(ids)) if parts.soft is None else parts.soft.module.numbered(pad(ids), known) as numbered:
            return p_yes(parts.llm, numbered, lengths, parts.answer_ids, budget, parts.device).cpu().numpy()

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> RequestRows:
        """Requests as rows.

        Args:
            requests (list of dict): as for `score_many`.

        Returns:
            RequestRows: its prompter retrieves, renders and tokenizes as that of the data set does.

        Raises:
            RequestError: names what is unknown or missing.
        """
        items: dict[Item, int] = {}
        columns, now, profiles, rows, targets, of, names = [], [], [], [], [], [], []

        def local(item):
            return items.setdefault(item, len(items))

        for place, request in enumerate(requests):
            unknown = set(request) - _KEYS
            if unknown:
                raise RequestError(f"Expected the keys {', '.join(sorted(_KEYS))}, found {sorted(unknown)}.")
            profile, history = self._user(request)
            profiles.append(profile)
            columns += [(place, local(did.item), did.rating, did.label, did.time) for did in history]
            now += [np.nan] * len(history) + [self.parts.catalogue.asked_at(request.get("time"), history)]
            candidates = request.get("candidates")
            if not isinstance(candidates, (list, tuple)) or not candidates:
                raise RequestError(f"candidates: expected a list of items that is not empty, found {candidates!r}.")
            # The row from which the candidates are seen: after all of the history.
            columns.append((place, 0, 0.0, 0, history[-1].time if history else 0))
            for candidate in candidates:
                item = self.parts.catalogue.item(candidate)
                rows.append(len(columns) - 1)
                targets.append(local(item))
                of.append(place)
                names.append(item.name)
        users = [None if r.get("user_id") is None else self._place_of_user(r["user_id"]) for r in requests]
        asked = [in_utf8(str(r.get("id", place)), "id") for place, r in enumerate(requests)]
        prompter = self._prompter(list(items), columns, np.array(now), profiles, users, asked)
        return RequestRows(prompter, np.array(rows), np.array(targets), np.array(of), names)

    def _prompter(self, items, columns, now, profiles, users, names):
        """A Prompter over the rows of requests, with items and users numbered as they came."""
        parts, settings = self.parts, self.parts.settings
        user, item, rating, label, time = (np.array(column) for column in zip(*columns))
        rows = Rows(
            user.astype(np.int32),
            item.astype(np.int32),
            as_whole(time.astype(np.float64)),
            None if parts.catalogue.rating_type is None else rating.astype(parts.catalogue.rating_type),
            label.astype(np.int8) if parts.catalogue.has_label else None,
            np.full(len(user), NO_SPLIT, dtype=np.int8),
        )
        item_words = [dict(item.words) for item in items]
        template = PromptTemplate(**parts.texts, user_fields=profiles.__getitem__, item_fields=item_words.__getitem__)
        histories = Histories(rows, len(profiles))
        retriever = None
        if parts.item_space is not None:
            vectors = self._vectors(items, template)
            retriever = Retriever(rows, histories, vectors, settings["history_size"], settings["retrieval_metric"])
        soft = self.parts.soft

        def features(names):
            return self._features(rows, histories, items, names, retriever, now) if names else None

        return Prompter(
            rows=rows,
            histories=histories,
            user_ids=names,
            item_ids=[item.name for item in items],
            template=template,
            **shown_by(settings),
            retriever=retriever,
            features=features(template.numbers),
            tokenizer=parts.tokenizer,
            max_tokens=parts.max_tokens,
            soft=soft and soft.of_requests(rows, items, users, features(soft.names)),
        )

    def _features(self, rows, histories, items, names, retriever, now):
        """Numbers of the rows of requests, for the template and for ReLLaX: items as the training rows know them."""
        catalogue = self.parts.catalogue
        words = [dict(item.words) for item in items]
        values = {
            field: ItemValues.of([word[field] for word in words], catalogue.separator_of(field))
            for field in dict.fromkeys(map(same_field, names))
            if field
        }
        places = np.array([-1 if item.known is None else item.known for item in items])
        return HistoryFeatures(
            rows=rows,
            histories=histories,
            statistics=self.parts.statistics.seen_by(places),
            names=names,
            values=values,
            similar=None if retriever is None else retriever.weighted,
            alike=None if self.parts.alike is None else RatedAlike.of_requests(rows, histories, self.parts.alike, places),
            taste=None if self.parts.taste is None else self.parts.taste.of_requests(places),
            likes=None if self.parts.likes is None else self.parts.likes.seen_by(places),
            now=now,
        )

    def _vectors(self, items, template):
        """The vectors of items: those of the catalogue as they are, new ones by its encoder."""
        space = self.parts.item_space
        new = [place for place, item in enumerate(items) if item.known is None]
        vectors = space.vectors[[0 if item.known is None else item.known for item in items]].copy()
        if new:
            sentence = self.parts.settings["retrieval_sentence"]
            vectors[new] = space.encode([template.sentence(place, sentence) for place in new])
        return vectors

    def _user(self, request):
        """Profile (field -> words) and history (list of Did, oldest first) of a request."""
        catalogue, dataset = self.parts.catalogue, self.dataset
        user_id, profile, history = (request.get(key) for key in ("user_id", "profile", "history"))
        place = None if user_id is None else self._place_of_user(user_id)
        if profile is None:
            words = catalogue.words("user", {}) if place is None else dataset.words["user"](place)
        elif isinstance(profile, dict):
            words = catalogue.words("user", profile)
        else:
            raise RequestError(f"profile: expected a dict of user fields, found {profile!r}.")
        if history is not None:
            if not isinstance(history, (list, tuple)):
                raise RequestError(f"history: expected a list of (item, rating, time), found {history!r}.")
            return words, catalogue.in_order([catalogue.behaviour(behaviour) for behaviour in history])
        return words, [] if place is None else self._past(place)

    def _place_of_user(self, user_id):
        place = self._user_places.get(str(user_id))
        if place is None:
            known = "a scorer that was saved knows no users" if self.dataset is None else f"found {user_id!r}"
            raise RequestError(
                f"user_id: expected a user of the data set {self.parts.catalogue.dataset}, {known}. Give profile and history for a "
                "user that it does not have."
            )
        return place

    def _past(self, place):
        """What a user of the data set did."""
        dataset, rows = self.dataset, self.dataset.rows
        past = dataset.histories.row_ids[dataset.histories.start[place] : dataset.histories.start[place + 1]]
        return [
            Did(
                self.parts.catalogue.known_item(int(rows.item[row])),
                0.0 if rows.rating is None else as_in_file(rows.rating[row]),
                0 if rows.label is None else int(rows.label[row]),
                float(rows.time[row]),
            )
            for row in past
        ]

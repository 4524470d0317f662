"""ReLLaX for requests: the same tables, projectors and numbers as those of the run, over rows that no data set has.

An item or a user that the run did not have is the average one, as one without training rows is in the run itself.
"""

from dataclasses import dataclass, replace

import numpy as np

from recbole_rella.data.rellax import rellax_of
from recbole_rella.llm.rellax import EncodedNumbers, Rellax
from recbole_rella.prompt.soft_places import OF_ITEMS, SoftPlaces, UserVectors
from recbole_rella.serving.catalogue import RequestError

# Why a scorer with soft tokens or gates made of `row` serves no request.
OF_ROWS_ALONE = (
    "expected soft tokens and gates made of items, users and numbers of histories, found row: a conventional model has no "
    "representations of requests. Use user or history in its place."
)


@dataclass(frozen=True, eq=False)
class SoftRequests:
    """What soft tokens and gates of requests are made of.

    Attributes:
        module (Rellax): in the LLM.
        places (SoftPlaces): of the run; its sources are not read.
        users (numpy.ndarray or None): vectors of the run's users, float32 [users, E], where a soft token stands for them.
        names (tuple of str): of the numbers of histories, where one stands for them.
    """

    module: Rellax
    places: SoftPlaces
    users: np.ndarray | None = None
    names: tuple = ()

    @classmethod
    def of(cls, module, places):
        """Those of a run.

        Args:
            module (Rellax): of its model.
            places (SoftPlaces): of its prompter.
        """
        numbers, users = places.sources.get("history"), places.sources.get("user")
        names = () if numbers is None else numbers.names
        return cls(module, replace(places, sources={}), None if users is None else users.table, names)

    @property
    def table(self):
        """The vectors of items, float32 [items, E], or None."""
        return self.module.soft.table.cpu().numpy() if self.places.items else None

    def plain(self):
        """What `saved` needs beside the table and the module's own files, JSON-able values."""
        places = {"first": self.places.first, "of": list(self.places.of), "gate": self.places.gate, "items": self.places.items}
        return {"places": places, "users": 0 if self.users is None else self.users.shape[1], "names": list(self.names)}

    @classmethod
    def saved(cls, llm, plain, table, folder):
        """Those that were saved; of the run's users none is known any more.

        Args:
            llm (peft.PeftModel): with its adapters.
            plain (dict), table (numpy.ndarray or None): as of a run.
            folder (pathlib.Path): where the module's files are.
        """
        places = SoftPlaces(**{**plain["places"], "of": tuple(plain["places"]["of"])})
        names, width = tuple(plain["names"]), plain["users"]
        history = EncodedNumbers(names, np.empty((0, len(names)), dtype=np.float32)) if names else None
        inits = {"spa": "zero", "cflora": "identity"}  # what they were trained to is loaded
        module = rellax_of(llm, places, inits, {"item": 0, "row": 0}, table, {"user": width}, history)
        module.load(folder)
        return cls(module.to(llm.device), places, np.zeros((1, width), dtype=np.float32) if width else None, names)

    def of_requests(self, rows, items, users, numbers):
        """The soft tokens of the prompts of requests.

        Args:
            rows (Rows): of the requests.
            items (list of Item): by their number in `rows`.
            users (list of int or None): of each request, the run's own number of its user.
            numbers (HistoryFeatures or None): of the rows, by `names`.

        Returns:
            SoftPlaces: with their sources.

        Raises:
            RequestError: they are made of what only rows of the data set have.
        """
        if "row" in self.places.kinds:
            raise RequestError(f"spa_tokens, cflora_input: {OF_ROWS_ALONE}")
        sources = {} if numbers is None else {"history": numbers}
        if self.users is not None:
            sources["user"] = UserVectors(self.users[[user or 0 for user in users]], rows.user)
        places = np.array([item.known or 0 for item in items], dtype=np.int64)
        has_items = bool(set(OF_ITEMS) & set(self.places.of))
        return replace(self.places, places=places if has_items else self.places.places, sources=sources)

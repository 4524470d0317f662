"""The retrieval of a run: item vectors, and the behaviours that are found by them, made when they are first asked for.

Vectors may be made by the LLM itself, which the embedded one is only after it has been pretrained; where it learns from numbers of
retrieved behaviours, they are asked for before that, else after the last check that needs none.
"""

from functools import cached_property

from recbole_rella.config import cache_folder
from recbole_rella.data.materials import collaborative_vectors, make_item_space
from recbole_rella.key_rules import text_encoder
from recbole_rella.retrieval.encoder import make_encoder
from recbole_rella.retrieval.retriever import Retriever


class Retrieval:
    """Where items are compared, and what is found there.

    Args:
        dataset (ReLLaDataset): with rows, histories and splits.
        sentences (list of str): what is encoded of each item.
        row_ids (numpy.ndarray): rows whose behaviours are searched ahead of time, int [n].

    Raises:
        RellaError: the encoder or the conventional model does not exist; that of the LLM itself shows when it is asked for.
    """

    def __init__(self, dataset, sentences, row_ids):
        self._dataset, self._sentences, self._row_ids = dataset, sentences, row_ids
        config = dataset.config
        self.needs_llm = text_encoder(config) == "llm"
        self._encoder = None if self.needs_llm else make_encoder(text_encoder(config), None, config)
        self._collaborative = collaborative_vectors(dataset)

    def with_llm(self, backbone):
        """Let an LLM encode, where no other encoder does.

        Args:
            backbone (Backbone): loaded when vectors are asked for that the cache does not have.
        """
        if self.needs_llm:
            self._encoder = make_encoder("llm", backbone, self._dataset.config)

    @cached_property
    def space(self):
        """The item vectors, ItemSpace or MixedSpace."""
        return make_item_space(self._dataset.config, self._sentences, self._encoder, self._collaborative)

    @cached_property
    def retriever(self):
        """The Retriever over all rows, with what was searched ahead of time."""
        dataset, config = self._dataset, self._dataset.config
        found = Retriever(dataset.rows, dataset.histories, self.space.vectors, config["history_size"], config["retrieval_metric"])
        return found.searched_ahead(self._row_ids, cache_folder(config), config["show_progress"])

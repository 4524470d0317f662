"""The space in which items are compared: sentences are encoded, reduced by PCA, normalized, and kept on disk.

ReLLa (WWW 2024), section 3.2: an item is described in one sentence, encoded by the LLM itself (mean of its last hidden
states), reduced by PCA to 512 dimensions, and compared by cosine.
"""

import logging
from functools import cached_property

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from recbole_rella.files import cached_arrays
from recbole_rella.retrieval.encoder import EncoderError

logger = logging.getLogger(__name__)


class ItemSpace:
    """The vectors of the catalogue, and those of items that it does not have.

    Equal sentences get equal vectors, whatever batch they were encoded in, and whether the item is of the catalogue or not.

    Args:
        sentences (list of str): one an item of the catalogue, n in all.
        encoder: see encoder.py.
        pca_dim (int or None): dimension after PCA (scikit-learn); skipped where there are not more.
        metric (str): cosine (vectors are made unit vectors), l2 or dot.
        arrays (dict, optional): what `arrays` of an equal space gave; else the sentences are encoded now.

    Attributes:
        sentences (list of str), encoder, pca_dim, metric: as given.
        arrays (dict): vectors (float32 [n, d]), and mean and components of the PCA (empty without one).

    Raises:
        EncoderError: a vector is not finite.
    """

    def __init__(self, sentences, encoder, pca_dim, metric, arrays=None):
        self.sentences, self.encoder, self.pca_dim, self.metric = list(sentences), encoder, pca_dim, metric
        self._distinct, self._place = np.unique(np.array(self.sentences, dtype=object).astype(str), return_inverse=True)
        self.arrays = self._make() if arrays is None else arrays

    @property
    def vectors(self):
        """Of the catalogue, float32 [n, d]."""
        return self.arrays["vectors"]

    @cached_property
    def _fitted(self):
        if hasattr(self.encoder, "fit"):
            self.encoder.fit(list(self._distinct))
        return self.encoder

    def _make(self):
        logger.info("Encoding %d different item sentences.", len(self._distinct))
        vectors = self._fitted.encode(list(self._distinct))[self._place]
        sparse = not isinstance(vectors, np.ndarray)
        mean = components = np.empty(0, dtype=np.float32)
        if self.pca_dim is not None and self.pca_dim < min(vectors.shape):
            # Arpack takes sparse vectors as they are; centring them by hand would make them dense.
            pca = PCA(self.pca_dim, svd_solver="arpack" if sparse else "auto", random_state=0)
            vectors = pca.fit_transform(vectors)
            mean, components = pca.mean_, pca.components_
        elif sparse:
            vectors = vectors.toarray()
        return {"vectors": self._finish(vectors), "mean": mean, "components": components}

    def _finish(self, vectors):
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise EncoderError(
                f"retrieval_encoder: expected finite item vectors, found others from {self.encoder.identity}. Choose another "
                "encoder, or set llm_dtype to float32."
            )
        return normalize(vectors).astype(np.float32) if self.metric == "cosine" else vectors

    def encode(self, sentences):
        """Vectors of items, by the encoder, words and PCA of the catalogue.

        Args:
            sentences (list of str): m sentences.

        Returns:
            numpy.ndarray: float32 [m, d].
        """
        sentences = np.array(sentences, dtype=object).astype(str)
        place = np.minimum(np.searchsorted(self._distinct, sentences), len(self._distinct) - 1)
        is_new = self._distinct[place] != sentences
        vectors = self.vectors[self._items[place]]
        if is_new.any():
            vectors[is_new] = self._encode(sentences[is_new])
        return vectors

    @cached_property
    def _items(self):
        """An item of the catalogue for each of its different sentences."""
        items = np.empty(len(self._distinct), dtype=np.int64)
        items[self._place] = np.arange(len(self._place))
        return items

    def _encode(self, sentences):
        vectors = self._fitted.encode(sentences.tolist())
        vectors = vectors if isinstance(vectors, np.ndarray) else vectors.toarray()
        if len(self.arrays["components"]):
            vectors = (vectors - self.arrays["mean"]) @ self.arrays["components"].T
        return self._finish(vectors)


def item_space(sentences, encoder, pca_dim, metric, folder):
    """An ItemSpace whose vectors come from the cache where they are there.

    Args:
        sentences, encoder, pca_dim, metric: as for ItemSpace.
        folder (pathlib.Path): the cache.
    """
    identity = encoder.identity
    parts = None if identity is None else (sentences, identity, pca_dim, metric == "cosine")
    arrays = cached_arrays(folder, "item-space", parts, lambda: ItemSpace(sentences, encoder, pca_dim, metric).arrays)
    return ItemSpace(sentences, encoder, pca_dim, metric, arrays)

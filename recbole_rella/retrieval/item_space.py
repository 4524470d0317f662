"""The space in which items are compared: sentences are encoded, reduced by PCA, normalized, and kept on disk.

ReLLa (WWW 2024), section 3.2: an item is described in one sentence, encoded by the LLM itself (mean of its last hidden
states), reduced by PCA to 512 dimensions, and compared by cosine. RALLRec (WWW 2025, arXiv 2502.06101) puts what a collaborative
model has learned of the item beside it.
"""

import logging
from functools import cached_property

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from recbole_rella.files import cached_arrays, fingerprint
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
        self._distinct = sorted(set(self.sentences))
        self._places = {sentence: place for place, sentence in enumerate(self._distinct)}
        self.arrays = self._make() if arrays is None else arrays

    @property
    def vectors(self):
        """Of the catalogue, float32 [n, d]."""
        return self.arrays["vectors"]

    @property
    def identity(self):
        """Names what makes a vector of a sentence, PCA and metric aside; None where it cannot be known."""
        return self.encoder.identity

    @cached_property
    def _fitted(self):
        if hasattr(self.encoder, "fit"):
            self.encoder.fit(self._distinct)
        return self.encoder

    def _make(self):
        logger.info("Encoding %d different item sentences.", len(self._distinct))
        vectors = self._fitted.encode(self._distinct)[[self._places[sentence] for sentence in self.sentences]]
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
        return _for_metric(vectors, self.metric)

    def encode(self, sentences):
        """Vectors of items, by the encoder, words and PCA of the catalogue.

        Args:
            sentences (list of str): m sentences.

        Returns:
            numpy.ndarray: float32 [m, d].
        """
        items = np.array([self._items.get(sentence, -1) for sentence in sentences], dtype=np.int64)
        vectors = self.vectors[items]
        new = np.flatnonzero(items < 0)
        if len(new):
            vectors[new] = self._encode([sentences[place] for place in new])
        return vectors

    @cached_property
    def _items(self):
        """Sentence -> an item of the catalogue that has it."""
        return {sentence: item for item, sentence in enumerate(self.sentences)}

    def _encode(self, sentences):
        vectors = self._fitted.encode(sentences)
        vectors = vectors if isinstance(vectors, np.ndarray) else vectors.toarray()
        if len(self.arrays["components"]):
            vectors = (vectors - self.arrays["mean"]) @ self.arrays["components"].T
        return self._finish(vectors)


class MixedSpace:
    """The vectors of texts beside collaborative ones (RALLRec, arXiv 2502.06101).

    Each part is divided by its largest norm, so that neither outweighs the other by its scale. The parts are weighted so that by
    dot and l2 the similarity of two items is (1 - weight) times that of their texts plus weight times the collaborative one; cosine
    compares the same vectors by their angle, so that the part that is longer counts for more. RALLRec's is .5 by cosine.

    Args:
        text (ItemSpace): of the catalogue's n items, whose metric is dot.
        collaborative (numpy.ndarray): float32 [n, E]; zeros where nothing is known of an item.
        weight (float): of the collaborative part, 0 to 1.
        metric (str): cosine (vectors are made unit vectors), l2 or dot.

    Attributes:
        sentences (list of str), encoder: of the texts; metric (str): as given.
        vectors (numpy.ndarray): of the catalogue, float32 [n, d + E].

    Raises:
        EncoderError: a collaborative vector is not finite.
    """

    def __init__(self, text, collaborative, weight, metric):
        if not np.isfinite(collaborative).all():
            raise EncoderError(
                "retrieval_encoder mix: expected finite item vectors of crm, found others. Train that model again, with a lower "
                "learning_rate."
            )
        self.sentences, self.encoder = text.sentences, text.encoder
        self._text, self._collaborative, self._weight, self.metric = text, collaborative, weight, metric
        # Of items alone: padding, which has no sentence, is encoded as well.
        self._scale = _largest_norm(text.vectors[np.array(self.sentences, dtype=object) != ""]), _largest_norm(collaborative)
        self.vectors = self._mixed(text.vectors, collaborative)

    def _mixed(self, text, collaborative):
        weights = np.sqrt([1 - self._weight, self._weight])
        parts = zip(weights, self._scale, (text, collaborative))
        vectors = np.hstack([weight * part.astype(np.float64) / scale for weight, scale, part in parts])
        return _for_metric(vectors, self.metric).astype(np.float32)

    @property
    def arrays(self):
        """What an equal space is made of: `arrays` of the texts, and collaborative (float32 [n, E])."""
        return {**self._text.arrays, "collaborative": self._collaborative}

    @property
    def identity(self):
        """Names both parts and their weight; None where that of the texts cannot be known."""
        text = self._text.identity
        return text and f"mix of {text} and vectors {fingerprint(self._collaborative)}, {self._weight}"

    def encode(self, sentences):
        """Vectors of items of which a text is all that is known, float32 [m, d + E]; see `ItemSpace.encode`."""
        return self._mixed(self._text.encode(sentences), np.zeros((len(sentences), self._collaborative.shape[1])))


def _for_metric(vectors, metric):
    return normalize(vectors).astype(vectors.dtype) if metric == "cosine" else vectors


def _largest_norm(vectors):
    """1 where all vectors are zeros: what they are divided by."""
    return np.linalg.norm(vectors.astype(np.float64), axis=1).max(initial=0.0) or 1.0


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

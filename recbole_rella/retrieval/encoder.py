"""Item sentences to item vectors: encode, reduce by PCA, normalize, and keep them on disk.

ReLLa (WWW 2024), section 3.2: an item is described in one sentence, encoded by the LLM itself (mean of its last hidden
states), reduced by PCA to 512 dimensions, and compared by cosine. Any encoder with `identity` and `encode` will do.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from recbole_rella.files import cached_arrays, fingerprint, folder_fingerprint
from recbole_rella.llm.scoring import batches_by_tokens, pad

logger = logging.getLogger(__name__)


class TfidfEncoder:
    """Word weights by scikit-learn, fitted on the catalogue; needs no model at all."""

    identity = "tfidf"

    def fit(self, sentences):
        """Take the words and their weights from the sentences of all items.

        Args:
            sentences (list of str): of the catalogue.

        Raises:
            ValueError: there is no word in them.
        """
        if not any(any(character.isalnum() for character in sentence) for sentence in sentences):
            raise ValueError(
                "retrieval_encoder tfidf: expected item sentences with words, found none; "
                "set retrieval_sentence to fields that hold text."
            )
        # Every run of letters or digits counts, also a single one ("M", "8"), unlike scikit-learn's default.
        self._words = TfidfVectorizer(token_pattern=r"(?u)\w+", dtype=np.float32).fit(sentences)

    def encode(self, sentences):
        """Encode sentences.

        Args:
            sentences (list of str): n sentences; words that the catalogue does not have count for nothing.

        Returns:
            scipy.sparse.csr_matrix: [n, words], float32.
        """
        return self._words.transform(sentences)


class SentenceTransformersEncoder:
    """Any model that sentence-transformers loads, by name or folder.

    Raises:
        ValueError: if there is no such model, or it cannot be reached.
    """

    def __init__(self, name, device):
        from sentence_transformers import SentenceTransformer  # imports for seconds, and only this encoder needs it

        folder = Path(name).expanduser()
        try:
            self.model = SentenceTransformer(str(folder) if folder.is_dir() else name, device=str(device))
        except Exception as error:
            raise ValueError(
                f"retrieval_encoder: expected llm, tfidf, or the name or folder of a sentence-transformers model, found "
                f"{name!r}, which could not be loaded ({type(error).__name__}: {error}). Check the name, or give a folder."
            ) from error
        config = getattr(self.model[0], "auto_model", None)
        revision = getattr(getattr(config, "config", None), "_commit_hash", None)
        self.identity = f"{name}@{_tree_fingerprint(folder) if folder.is_dir() else revision}"

    def encode(self, sentences):
        """Encode sentences; float32 [n, d]."""
        return self.model.encode(sentences, show_progress_bar=len(sentences) > 5000, convert_to_numpy=True)


class HiddenStateEncoder:
    """The paper's encoder: the LLM's own last hidden states over a sentence, averaged or at its last token.

    Args:
        backbone (Backbone): the LLM, not loaded before vectors are asked for.
        pooling (str): mean or last.
        micro_tokens (int): tokens that go through the LLM at a time, padding included.
    """

    def __init__(self, backbone, pooling, micro_tokens):
        self._backbone, self._pooling, self._micro_tokens = backbone, pooling, micro_tokens
        self.identity = f"{backbone.identity}/{backbone.dtype}/{backbone.quantization}/{pooling}"

    @torch.no_grad()
    def encode(self, sentences):
        """Encode sentences; float32 [n, hidden size], padding excluded."""
        model, tokenizer = self._backbone.model, self._backbone.tokenizer
        limit = self._backbone.max_positions
        ids = [tokenizer(s, truncation=limit is not None, max_length=limit)["input_ids"] or [0] for s in sentences]
        vectors = np.empty((len(ids), model.config.get_text_config().hidden_size), dtype=np.float32)
        lengths = np.array([len(i) for i in ids])
        for batch in batches_by_tokens(lengths, self._micro_tokens):
            padded = pad([ids[place] for place in batch]).to(model.device)
            mask = pad([[1] * lengths[place] for place in batch]).to(model.device)
            states = model.base_model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.float()
            if self._pooling == "last":
                pooled = states[torch.arange(len(batch)), mask.sum(dim=1) - 1]
            else:
                pooled = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            vectors[batch] = pooled.cpu().numpy()
        return vectors


def _tree_fingerprint(folder):
    return fingerprint([folder_fingerprint(path) for path in [folder, *sorted(folder.rglob("*"))] if path.is_dir()])


class ItemSpace:
    """The space in which items are compared: the vectors of the catalogue, and those of items that it does not have.

    Equal sentences get equal vectors, whatever batch they were encoded in. The catalogue's vectors come from the cache where
    they are there.

    Args:
        sentences (list of str): one an item of the catalogue, n in all.
        encoder: has `identity` (str, names its weights and settings), `encode(list of str) -> [n, d]`, and `fit(list of str)`
            if it learns from the catalogue.
        pca_dim (int or None): dimension after PCA (scikit-learn); skipped where there are not more.
        metric (str): cosine (vectors are made unit vectors), l2 or dot.
        cache_folder (pathlib.Path): where vectors are kept.

    Attributes:
        vectors (numpy.ndarray): of the catalogue, float32 [n, d].

    Raises:
        ValueError: a vector is not finite.
    """

    def __init__(self, sentences, encoder, pca_dim, metric, cache_folder):
        self._distinct, self._place = np.unique(np.array(sentences, dtype=object).astype(str), return_inverse=True)
        self._encoder, self._pca_dim, self._metric = encoder, pca_dim, metric
        key = fingerprint(sentences, encoder.identity, pca_dim, metric == "cosine")
        arrays = cached_arrays(Path(cache_folder) / f"item-space-{key}.npz", self._make)
        self.vectors, self._mean, self._components = arrays["vectors"], arrays["mean"], arrays["components"]
        self._fitted = False

    def _fit(self):
        if hasattr(self._encoder, "fit"):
            self._encoder.fit(list(self._distinct))
        self._fitted = True

    def _make(self):
        logger.info("Encoding %d different item sentences (%s).", len(self._distinct), self._encoder.identity)
        self._fit()
        vectors = self._encoder.encode(list(self._distinct))[self._place]
        sparse = not isinstance(vectors, np.ndarray)
        mean = components = np.empty(0, dtype=np.float32)
        if self._pca_dim is not None and self._pca_dim < min(vectors.shape):
            # Arpack takes sparse vectors as they are; centring them by hand would make them dense.
            pca = PCA(self._pca_dim, svd_solver="arpack" if sparse else "auto", random_state=0)
            vectors = pca.fit_transform(vectors)
            mean, components = pca.mean_, pca.components_
        elif sparse:
            vectors = vectors.toarray()
        return {"vectors": self._finish(vectors), "mean": mean, "components": components}

    def _finish(self, vectors):
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError(f"retrieval_encoder: expected finite item vectors, found others from {self._encoder.identity}.")
        return normalize(vectors).astype(np.float32) if self._metric == "cosine" else vectors

    def encode(self, sentences):
        """Vectors of items that are not in the catalogue, by the encoder, words and PCA of the catalogue.

        Args:
            sentences (list of str): m sentences.

        Returns:
            numpy.ndarray: float32 [m, d].
        """
        if not self._fitted:
            self._fit()
        vectors = self._encoder.encode(list(sentences))
        vectors = vectors if isinstance(vectors, np.ndarray) else vectors.toarray()
        if len(self._components):
            vectors = (vectors - self._mean) @ self._components.T
        return self._finish(vectors)

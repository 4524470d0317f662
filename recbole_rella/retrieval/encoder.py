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

from recbole_rella.files import cached_array, fingerprint, folder_fingerprint
from recbole_rella.llm.scoring import batches_by_tokens, pad

logger = logging.getLogger(__name__)


class TfidfEncoder:
    """Word weights by scikit-learn; needs no model at all."""

    identity = "tfidf"

    def encode(self, sentences):
        """Encode sentences.

        Args:
            sentences (list of str): n sentences.

        Returns:
            scipy.sparse.csr_matrix: [n, words], float32.
        """
        if not any(any(character.isalnum() for character in sentence) for sentence in sentences):
            raise ValueError(
                "retrieval_encoder tfidf: expected item sentences with words, found none; "
                "set retrieval_sentence to fields that hold text."
            )
        # Every run of letters or digits counts, also a single one ("M", "8"), unlike scikit-learn's default.
        return TfidfVectorizer(token_pattern=r"(?u)\w+", dtype=np.float32).fit_transform(sentences)


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


def _reduce(vectors, dimension):
    """PCA by scikit-learn, skipped where `dimension` is not smaller than what there is; dense float32."""
    sparse = not isinstance(vectors, np.ndarray)
    if dimension is not None and dimension < min(vectors.shape):
        # Arpack takes sparse vectors as they are; centring them by hand would make them dense.
        solver = "arpack" if sparse else "auto"
        vectors = PCA(dimension, svd_solver=solver, random_state=0).fit_transform(vectors)
    elif sparse:
        vectors = vectors.toarray()
    return np.ascontiguousarray(vectors, dtype=np.float32)


def item_vectors(sentences, encoder, pca_dim, metric, cache_folder):
    """Vectors of all items, from the cache where they are there.

    Equal sentences get equal vectors, whatever batch they were encoded in.

    Args:
        sentences (list of str): one an item, n in all.
        encoder: has `identity` (str, names its weights and settings) and `encode(list of str) -> [n, d]`.
        pca_dim (int or None): dimension after PCA.
        metric (str): cosine (vectors are made unit vectors), l2 or dot.
        cache_folder (pathlib.Path): where vectors are kept.

    Returns:
        numpy.ndarray: float32 [n, d].

    Raises:
        ValueError: if a vector is not finite.
    """

    def encode():
        distinct, place = np.unique(np.array(sentences, dtype=object).astype(str), return_inverse=True)
        logger.info("Encoding %d different item sentences (%s).", len(distinct), encoder.identity)
        vectors = encoder.encode(list(distinct))
        vectors = _reduce(vectors[place], pca_dim)
        if not np.isfinite(vectors).all():
            raise ValueError(f"retrieval_encoder: expected finite item vectors, found others from {encoder.identity}.")
        return normalize(vectors).astype(np.float32) if metric == "cosine" else vectors

    key = fingerprint(sentences, encoder.identity, pca_dim, metric == "cosine")
    return cached_array(Path(cache_folder) / f"items-{key}.npz", encode)

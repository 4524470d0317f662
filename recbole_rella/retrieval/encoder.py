"""Encoders: item sentences to vectors.

An encoder has `identity` (str, which names its weights and settings; None where it cannot be known), `commit` (str, of a model of
the hub; else None), `encode(list of str) -> [n, d]`, and `fit(list of str)` if it learns from the catalogue.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_rella.errors import RellaError
from recbole_rella.files import fingerprint, folder_fingerprint
from recbole_rella.llm.backbone import without_adapters
from recbole_rella.llm.hub import commit_of
from recbole_rella.llm.products import fast_products
from recbole_rella.llm.scoring import ONE_AT_A_TIME, batches_by_tokens, pad
from recbole_rella.progress import bar
from recbole_rella.prompt.tokenization import ControlTokens

logger = logging.getLogger(__name__)


class EncoderError(RellaError):
    """An encoder of item sentences cannot be loaded, or gives no vectors that can be compared."""


class TfidfEncoder:
    """Word weights by scikit-learn, fitted on the catalogue; needs no model at all."""

    identity, commit = "tfidf", None

    def fit(self, sentences):
        """Take the words and their weights from the sentences of all items.

        Args:
            sentences (list of str): of the catalogue.

        Raises:
            EncoderError: there is no word in them.
        """
        if not any(any(character.isalnum() for character in sentence) for sentence in sentences):
            raise EncoderError(
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

    Args:
        name (str): on the hub, or a folder.
        device (torch.device): where it encodes.
        revision (str, optional): branch, tag or commit of a hub model.

    Raises:
        EncoderError: if there is no such model, or it cannot be reached.
    """

    def __init__(self, name, device, revision=None):
        from sentence_transformers import SentenceTransformer  # imports for seconds, and only this encoder needs it

        folder = Path(name).expanduser()
        self.commit = commit = None if folder.is_dir() else commit_of(name, revision, ("modules.json", "config.json"))
        source = (
            {"model_name_or_path": str(folder)} if folder.is_dir() else {"model_name_or_path": name, "revision": commit or revision}
        )
        try:
            self.model = SentenceTransformer(**source, device=str(device))
        except Exception as error:  # those of the hub, of files and of transformers: whatever it is, the remedy is the same
            raise EncoderError(
                f"retrieval_encoder: expected llm, tfidf, or the name or folder of a sentence-transformers model, found "
                f"{name!r}, which could not be loaded ({type(error).__name__}: {error}). Check the name, or give a folder."
            ) from error
        version = _tree_fingerprint(folder) if folder.is_dir() else commit
        self.identity = None if version is None else f"{'sentence-transformers' if folder.is_dir() else name}@{version}"
        if version is None:
            logger.warning(
                "retrieval_encoder: no commit of %r can be found, so its item vectors are made anew in every run. Set "
                "retrieval_encoder_revision to a commit, or give a folder.",
                name,
            )

    def encode(self, sentences):
        """Encode sentences; float32 [n, d]."""
        control = ControlTokens(self.model.tokenizer)
        sentences = [control.broken_up(sentence)[0] for sentence in sentences]
        return self.model.encode(sentences, show_progress_bar=len(sentences) > 5000, convert_to_numpy=True)


class HiddenStateEncoder:
    """The paper's encoder: the LLM's own last hidden states over a sentence, averaged or at its last token.

    The LLM is always the one before tuning: adapters that were put on it meanwhile are left out, so that an item has the same
    vector in training and in serving.

    Args:
        backbone (Backbone): the LLM, not loaded before vectors are asked for.
        pooling (str): mean or last.
        micro_tokens (int): tokens that go through the LLM at a time, padding included.
        show_progress (bool): whether to show a bar where it takes longer than a few seconds.
    """

    def __init__(self, backbone, pooling, micro_tokens, show_progress=False):
        self._backbone, self._pooling, self._micro_tokens = backbone, pooling, micro_tokens
        self._show_progress = show_progress
        self.commit = None  # llm_revision has it
        known = backbone.identity is not None
        self.identity = f"{backbone.identity}/{backbone.dtype}/{backbone.quantization}/{pooling}" if known else None

    @torch.no_grad()
    def encode(self, sentences):
        """Encode sentences; float32 [n, hidden size], padding excluded."""
        model, tokenizer = self._backbone.model, self._backbone.tokenizer
        limit, control = self._backbone.max_positions, ControlTokens(tokenizer)
        sentences = [control.broken_up(sentence)[0] for sentence in sentences]
        ids = [tokenizer(s, truncation=limit is not None, max_length=limit)["input_ids"] or [0] for s in sentences]
        vectors = np.empty((len(ids), model.config.get_text_config().hidden_size), dtype=np.float32)
        lengths = np.array([len(i) for i in ids])
        progress = bar(len(ids), "Encoding items", self._show_progress)
        with ONE_AT_A_TIME, without_adapters(model), fast_products(), progress as done:
            for batch in batches_by_tokens(lengths, self._micro_tokens):
                padded = pad([ids[place] for place in batch]).to(model.device)
                mask = pad([[1] * lengths[place] for place in batch]).to(model.device)
                states = model.base_model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.float()
                if self._pooling == "last":
                    pooled = states[torch.arange(len(batch)), mask.sum(dim=1) - 1]
                else:
                    pooled = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                vectors[batch] = pooled.cpu().numpy()
                done.update(len(batch))
        return vectors


def _tree_fingerprint(folder):
    return fingerprint([folder_fingerprint(path) for path in [folder, *sorted(folder.rglob("*"))] if path.is_dir()])


def make_encoder(name, backbone, config):
    """The encoder that a configuration names.

    Args:
        name (str): llm, tfidf, or the name or folder of a sentence-transformers model.
        backbone (Backbone or None): the LLM; needed for llm alone.
        config (Mapping): device, retrieval_pooling, retrieval_encoder_revision, eval_micro_tokens, show_progress.

    Raises:
        EncoderError: there is no such encoder, or the LLM cannot encode.
    """
    if name == "tfidf":
        return TfidfEncoder()
    if name != "llm":
        return SentenceTransformersEncoder(name, config["device"], config["retrieval_encoder_revision"])
    if backbone.is_sharded:
        raise EncoderError(
            "retrieval_encoder: expected tfidf or a sentence-transformers model with an LLM that is divided among processes, which "
            "encodes nothing, found llm."
        )
    return HiddenStateEncoder(backbone, config["retrieval_pooling"], config["eval_micro_tokens"], config["show_progress"])

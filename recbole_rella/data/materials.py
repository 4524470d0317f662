"""What prompts and item vectors are made of: the template with its texts, the sentences of items, the LLM.

Each is made of a configuration and a data set that is split, be it ReLLa's or that of a model of RecBole on the same rows.
"""

import logging

import numpy as np

from recbole_rella.config import cache_folder, template_file
from recbole_rella.data.crm import item_vectors
from recbole_rella.data.embedded_llm import embedded_llm
from recbole_rella.errors import RellaError
from recbole_rella.files import cached_arrays
from recbole_rella.key_rules import text_encoder
from recbole_rella.llm.backbone import Backbone
from recbole_rella.llm.gguf_file import is_gguf, unpacked
from recbole_rella.prompt.template import PromptTemplate
from recbole_rella.retrieval.cooccurrence import cooccurrence_vectors
from recbole_rella.retrieval.encoder import make_encoder
from recbole_rella.retrieval.item_space import MixedSpace, item_space

logger = logging.getLogger(__name__)


class LabelsError(RellaError):
    """The embedded LLM has no labels to learn from."""


def template_texts(config):
    """The texts of the template and its parts, as PromptTemplate takes them."""
    layout = template_file(config["prompt_template"]).read_text(encoding="utf-8")
    parts = {part: config[f"prompt_{part}"] for part in ("profile", "item", "rating", "question", "system", "noun")}
    return {"layout": layout, "answers": tuple(config["prompt_answers"]), **parts}


def make_template(dataset, texts):
    """The template over the users and items of a data set.

    Args:
        dataset (KeepsWords): has their words.
        texts (dict): of `template_texts`.
    """
    return PromptTemplate(**texts, user_fields=dataset.words["user"], item_fields=dataset.words["item"])


def item_sentences(dataset, template):
    """The sentence that is encoded for each item, list of str by internal id; '' for padding."""
    text = dataset.config["retrieval_sentence"]
    return ["", *(template.sentence(item, text) for item in range(1, dataset.item_num))]


def llm_path(dataset, texts, template, features=None, found_by=None):
    """Where the LLM is, or its name on the hub; where the cache has not got it, mini is pretrained and a GGUF file unpacked.

    Args:
        dataset (KeepsWords and KeepsRows): split.
        texts (dict), template (PromptTemplate): of it.
        features (HistoryFeatures, optional), found_by (Retriever, optional): of which soft tokens are made, see `embedded_llm`.

    Raises:
        LabelsError: the embedded LLM has no labels to learn from.
        GgufError: the file cannot be read.
    """
    llm = dataset.config["llm"]
    if llm != "mini":
        return unpacked(llm, cache_folder(dataset.config)) if is_gguf(llm) else llm
    if dataset.rows.label is None:
        raise LabelsError(
            "llm: expected a Hugging Face LLM for a data set without labels, found mini, which learns from labels; set threshold, "
            "or another llm."
        )
    return embedded_llm(dataset, texts, template, cache_folder(dataset.config), features, found_by)


def make_backbone(config, llm):
    """The LLM at a path, or of a hub name, as a configuration wants it; not loaded yet."""
    return Backbone(
        llm,
        config["device"],
        config["llm_dtype"],
        config["llm_quantization"],
        config["llm_attn_implementation"],
        config["llm_trust_remote_code"],
        config["llm_shard"],
        config["llm_revision"],
    )


def collaborative_vectors(dataset):
    """What is known of items beside their texts, where retrieval_encoder is mix: what the conventional model of `crm` has learned,
    or without one, which items have training rows of the same users.

    Args:
        dataset (KeepsRows): split.

    Returns:
        numpy.ndarray or None: float32 [items, E], zeros where no training row told the model of an item; None without a mixture.

    Raises:
        CrmError, RunError: as `read_crm`.
    """
    config = dataset.config
    if config["retrieval_encoder"] != "mix":
        return None
    rows, pool = dataset.rows, dataset.pool
    if config["crm"] is None:
        parts = rows.user[pool], rows.item[pool], (dataset.user_num, dataset.item_num)
        made = cached_arrays(cache_folder(config), "cooccurrence", parts, lambda: {"vectors": cooccurrence_vectors(*parts)})
        return made["vectors"]
    vectors, trained = item_vectors(config["crm"], dataset), np.unique(rows.item[pool])
    found = np.zeros_like(vectors)
    found[trained] = vectors[trained]
    return found


def make_item_space(config, sentences, encoder, collaborative):
    """The space of item vectors that a configuration wants: of texts alone, or with `collaborative_vectors` beside them."""
    pca_dim, metric, folder = config["retrieval_pca_dim"], config["retrieval_metric"], cache_folder(config)
    if collaborative is None:
        return item_space(sentences, encoder, pca_dim, metric, folder)
    return MixedSpace(item_space(sentences, encoder, pca_dim, "dot", folder), collaborative, config["retrieval_mix"], metric)


def space_identity(config, space):
    """Names item vectors and how they are compared, str; None where the weights of their encoder cannot be known."""
    return space.identity and f"{space.identity}, {config['retrieval_pca_dim']}, {config['retrieval_metric']}"


def item_space_without_prompts(dataset):
    """The item vectors of a data set on which no prompts are made: those that ReLLa's prompts retrieve by, with these settings.

    An embedded LLM that encodes is the same one, as one that learns from numbers of histories too is refused there.

    Args:
        dataset (KeepsWords and KeepsRows): split.

    Returns:
        ItemSpace or MixedSpace: the LLM is loaded only where it encodes, and vectors are not in the cache.
    """
    config, texts = dataset.config, template_texts(dataset.config)
    template = make_template(dataset, texts)
    collaborative = collaborative_vectors(dataset)
    itself = text_encoder(config) == "llm"
    backbone = make_backbone(config, llm_path(dataset, texts, template)) if itself else None
    encoder = make_encoder(text_encoder(config), backbone, config)
    return make_item_space(config, item_sentences(dataset, template), encoder, collaborative)

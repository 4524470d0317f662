"""What stands between the split and the first batch: template, LLM, tokenizer, item vectors, retrieval, prompts.

Stages that return values, each of which gets all it needs when it is made. Cheap checks come first: a bad template, encoder or LLM
stops the run before anything is encoded or pretrained.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recbole_rella.config import chat_template, template_file
from recbole_rella.data.embedded_llm import embedded_llm
from recbole_rella.errors import RellaError
from recbole_rella.files import fingerprint
from recbole_rella.llm.backbone import Backbone
from recbole_rella.prompt.prompter import Prompter, RowTexts
from recbole_rella.prompt.stored_prompts import stored_prompts
from recbole_rella.prompt.template import PromptTemplate, TemplateError
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.retrieval.encoder import make_encoder
from recbole_rella.retrieval.item_space import ItemSpace, item_space
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.fields import RETRIEVED, ROW_ID

logger = logging.getLogger(__name__)

# How many prompts' ends are looked at for the answer tokens, and prompts whole for tokens that span lines.
_ENDS, _WHOLE = 200, 50


class LabelsError(RellaError):
    """The embedded LLM has no labels to learn from."""


@dataclass(frozen=True, eq=False)
class Assembly:
    """All that makes prompts of rows, and scores of prompts; the same object on every part of a split.

    Attributes:
        texts (Mapping): of the template, by name.
        prompter (Prompter): rows -> token ids.
        backbone (Backbone): the LLM.
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        item_space (ItemSpace or None): where items are compared; None where nothing is retrieved.
        identities (Mapping): rows, llm, encoder, prompts -> what names them (see run_folder.py).
        milliseconds_a_prompt (float): that a prompt of an evaluated row took when it was made: retrieval, text and tokens.
    """

    texts: Mapping[str, object]
    prompter: Prompter
    backbone: Backbone
    answer_ids: tuple
    item_space: ItemSpace | None
    identities: Mapping[str, str | None]
    milliseconds_a_prompt: float


def cache_folder(config):
    """Where item vectors and embedded LLMs are kept: cache_dir, or recbole_rella in the user's cache folder."""
    if config["cache_dir"]:
        return Path(config["cache_dir"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recbole_rella"


def template_texts(config):
    """The texts of the template and its parts, as PromptTemplate takes them."""
    layout = template_file(config["prompt_template"]).read_text(encoding="utf-8")
    parts = {part: config[f"prompt_{part}"] for part in ("profile", "item", "rating", "question", "system", "noun")}
    return {"layout": layout, "answers": tuple(config["prompt_answers"]), **parts}


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


def make_tokenizer(config, backbone, system):
    """The LLM's tokenizer with the chat format, and how many tokens a prompt may have.

    Returns:
        tuple: PromptTokenizer; int.
    """
    chat, answers = config["prompt_chat"], tuple(config["prompt_answers"])
    tokenizer = PromptTokenizer(backbone.tokenizer, chat, system, answers, chat_template(chat))
    return tokenizer, min(config["max_prompt_tokens"], backbone.max_positions or config["max_prompt_tokens"])


def _warn_of_nameless(template, item_num):
    nameless = [item for item in range(1, item_num) if not template.has_name(item)]
    if len(nameless) == item_num - 1:
        raise TemplateError(
            "prompt_item: expected a text that names items, found one that renders to nothing for every item of the data "
            "set; check the fields in prompt_item against the .item file."
        )
    if nameless:
        logger.warning(
            "%d of %d items have no name in prompt_item's fields, and are shown by their id.", len(nameless), item_num - 1
        )


def _llm_path(dataset, texts, template, folder):
    llm = dataset.config["llm"]
    if llm != "mini":
        return llm
    if dataset.rows.label is None:
        raise LabelsError(
            "llm: expected a Hugging Face LLM for a data set without labels, found mini, which learns from labels; set threshold, "
            "or another llm."
        )
    path = embedded_llm(dataset, texts, template, folder)
    logger.warning(
        "llm: mini has read the ratings of the training split while it was pretrained: train_shots says how many rows tune it, not "
        "how many it has seen. Few-shot results need a real LLM."
    )
    return path


def _with_tokens(row_texts, tokenizer, max_tokens, used_rows, samples):
    """Row texts with a tokenizer that was tried on some of them, and the answer tokens; retrieval and stored prompts come later.

    Returns:
        tuple: Prompter; tuple of int.
    """
    prompter, items = Prompter(**vars(row_texts), tokenizer=tokenizer, max_tokens=max_tokens), row_texts.rows.item
    random = np.random.default_rng(0)
    some = [*samples, *random.choice(used_rows, size=min(_ENDS, len(used_rows)), replace=False)]
    answer_ids = tokenizer.answer_ids([prompter.text(row, items[row], prompter.recent(row)[-1:]) for row in some])
    texts = (prompter.text(row, items[row], prompter.recent(row)) for row in some[:_WHOLE])
    if any(tokenizer.ids(text) != tokenizer.whole(text) for text in texts):
        prompter = replace(prompter, tokenizer=tokenizer.tokenizing_whole())
    prompter.check_budget(used_rows)
    return prompter, answer_ids


def _prompts_identity(config, texts, dataset, sentences, tokenizer, max_tokens, answer_ids):
    """Names what the words and the form of prompts depend on, but for the rows, the LLM and the item vectors."""
    settings = [config[key] for key in ("history_size", "history_order", "eval_history", "train_history")]
    frame = [tokenizer.start, tokenizer.framed("")]  # the chat format
    words = [dataset.words[kind].content() for kind in ("user", "item")]
    return fingerprint(texts, settings, frame, words, sentences, max_tokens, answer_ids)


def assemble(dataset, parts):
    """Make all that turns the rows of a split into scores.

    Args:
        dataset (ReLLaDataset): with rows, histories, words and splits.
        parts (list of ReLLaDataset): train, valid and test, with row_id and whether their prompts show retrieved behaviours.

    Returns:
        Assembly: of all parts.

    Raises:
        RellaError: a template, encoder, LLM or answer word that cannot be used.
    """
    config, rows, folder = dataset.config, dataset.rows, cache_folder(dataset.config)
    texts = template_texts(config)
    template = PromptTemplate(**texts, user_fields=dataset.words["user"], item_fields=dataset.words["item"])
    row_texts = RowTexts(
        rows=rows,
        histories=dataset.histories,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        template=template,
        history_size=config["history_size"],
        history_order=config["history_order"],
    )
    _warn_of_nameless(template, dataset.item_num)
    used = [(part.inter_feat[ROW_ID].numpy(), part.inter_feat[RETRIEVED].numpy().astype(bool)) for part in parts]
    used_rows = np.unique(np.concatenate([row_ids for row_ids, _ in used]))
    retrieved_rows = np.unique(np.concatenate([row_ids[retrieved] for row_ids, retrieved in used]))
    # A prompt of each split, so that a template that asks for what is not there fails before anything is made.
    samples = [row_ids[0] for row_ids, _ in used if len(row_ids)]
    for row in samples:
        row_texts.text(row, rows.item[row], row_texts.recent(row))

    sentences = ["", *(template.sentence(item, config["retrieval_sentence"]) for item in range(1, dataset.item_num))]
    ranks_candidates = config["eval_args"]["mode"] != {"valid": "labeled", "test": "labeled"}
    retrieves, encodes_itself = len(retrieved_rows) > 0 or ranks_candidates, config["retrieval_encoder"] == "llm"
    # An encoder that does not exist fails here, before any pretraining; the LLM's own waits for the LLM.
    encoder = make_encoder(config["retrieval_encoder"], None, config) if retrieves and not encodes_itself else None

    backbone = make_backbone(config, _llm_path(dataset, texts, template, folder))
    tokenizer, max_tokens = make_tokenizer(config, backbone, template.system)
    prompter, answer_ids = _with_tokens(row_texts, tokenizer, max_tokens, used_rows, samples)

    space = None
    if retrieves:
        encoder = make_encoder("llm", backbone, config) if encodes_itself else encoder
        space = item_space(sentences, encoder, config["retrieval_pca_dim"], config["retrieval_metric"], folder)
        retriever = Retriever(rows, dataset.histories, space.vectors, config["history_size"], config["retrieval_metric"])
        prompter = replace(prompter, retriever=retriever.searched_ahead(retrieved_rows, folder))

    prompts = _prompts_identity(config, texts, dataset, sentences, tokenizer, max_tokens, answer_ids)
    identities = {
        "rows": dataset.rows_identity(parts),
        "llm": backbone.identity and f"{backbone.identity}, {backbone.dtype}, {backbone.quantization or 'not quantized'}",
        "encoder": encoder
        and encoder.identity
        and f"{encoder.identity}, {config['retrieval_pca_dim']}, {config['retrieval_metric']}",
        "prompts": prompts,
    }
    prompter, milliseconds = _with_stored(prompter, used, space, backbone, prompts, folder)
    return Assembly(texts, prompter, backbone, answer_ids, space, identities, milliseconds[config["eval_history"] == "retrieved"])


def _with_stored(prompter, used, space, backbone, prompts, folder):
    """The prompter with the prompts of all parts made; milliseconds a prompt, by whether it shows retrieved behaviours."""
    rows = prompter.rows
    columns = [column for column in (rows.user, rows.item, rows.time, rows.rating, rows.label, rows.split) if column is not None]
    known = backbone.identity is not None
    identity = fingerprint(prompts, backbone.identity, *columns, *([] if space is None else [space.vectors])) if known else None
    stored = {
        kind: stored_prompts(
            prompter, np.concatenate([row_ids[retrieved == kind] for row_ids, retrieved in used]), kind, identity, folder
        )
        for kind in (False, True)
    }
    stored = {kind: prompts for kind, prompts in stored.items() if prompts is not None}
    milliseconds = {kind: stored[kind].milliseconds if kind in stored else 0.0 for kind in (False, True)}
    milliseconds[True] += prompter.retriever.ahead.milliseconds if prompter.retriever is not None else 0.0
    return replace(prompter, stored=stored), milliseconds

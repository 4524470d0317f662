"""What stands between the split and the first batch: template, LLM, tokenizer, item vectors, retrieval, prompts.

Stages that return values, each of which gets all it needs when it is made. Cheap checks come first: a bad template, encoder or LLM
stops the run before anything is encoded or pretrained.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from recbole_rella.config import cache_folder, chat_template, scores_rows
from recbole_rella.data.crm import Crm
from recbole_rella.data.history import history_features
from recbole_rella.data.materials import (
    item_sentences,
    llm_path,
    make_backbone,
    make_template,
    space_identity,
    template_texts,
)
from recbole_rella.data.rellax import check_encoder, conventional_model, history_numbers, soft_places
from recbole_rella.data.retrieval import Retrieval
from recbole_rella.files import fingerprint
from recbole_rella.key_rules import reads_both
from recbole_rella.llm.backbone import Backbone
from recbole_rella.prompt.in_chunks import in_chunks
from recbole_rella.prompt.prompter import Prompter, RowTexts, shown_by
from recbole_rella.prompt.soft_places import OF_ITEMS
from recbole_rella.prompt.stored_prompts import stored_prompts
from recbole_rella.prompt.template import FOR_PLACES, TemplateError
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.retrieval.item_space import ItemSpace, MixedSpace
from recbole_rella.rows.fields import KIND, KINDS, RECENT, ROW_ID

logger = logging.getLogger(__name__)

# How many prompts' ends are looked at for the answer tokens, and prompts whole for tokens that span lines.
_ENDS, _WHOLE = 200, 50


@dataclass(frozen=True, eq=False)
class Assembly:
    """All that makes prompts of rows, and scores of prompts; the same object on every part of a split.

    Attributes:
        texts (Mapping): of the template, by name.
        prompter (Prompter): rows -> token ids.
        backbone (Backbone): the LLM.
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        item_space (ItemSpace, MixedSpace or None): where items are compared; None where nothing is retrieved.
        crm (Crm or None): the conventional model whose vectors soft tokens are made of; None where none are.
        identities (Mapping): rows, llm, encoder, prompts, crm -> what names them (see run_folder.py).
        milliseconds_a_prompt (float): that a prompt of an evaluated row took when it was made: retrieval, text and tokens.
    """

    texts: Mapping[str, object]
    prompter: Prompter
    backbone: Backbone
    answer_ids: tuple
    item_space: ItemSpace | MixedSpace | None
    crm: Crm | None
    identities: Mapping[str, str | None]
    milliseconds_a_prompt: float


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


def _try_template(config, row_texts, samples, used_rows):
    """A prompt of each split, and some with the marks of soft tokens where there are such among their words.

    A template that asks for what is not there, or says something else with marks, fails before anything is made.
    """
    for row in samples:
        row_texts.text(row, row_texts.rows.item[row], row_texts.recent(row))
    if config["spa"] and set(OF_ITEMS) & set(config["spa_tokens"]):
        row_texts.check_marks(used_rows, **FOR_PLACES)


def _with_tokens(row_texts, tokenizer, max_tokens, soft, used_rows, samples, by):
    """Row texts with a tokenizer that was tried on some of them, and the answer tokens; retrieval and stored prompts come later.

    Returns:
        tuple: Prompter; tuple of int.
    """
    prompter, items = Prompter(**vars(row_texts), tokenizer=tokenizer, max_tokens=max_tokens, soft=soft), row_texts.rows.item
    random = np.random.default_rng(0)
    some = [*samples, *random.choice(used_rows, size=min(_ENDS, len(used_rows)), replace=False)]
    answer_ids = tokenizer.answer_ids([prompter.text(row, items[row], prompter.recent(row)[-1:]) for row in some])
    texts = (prompter.text(row, items[row], prompter.recent(row)) for row in some[:_WHOLE])
    if any(tokenizer.ids(text) != tokenizer.whole(text) for text in texts):
        prompter = replace(prompter, tokenizer=tokenizer.tokenizing_whole())
    list(in_chunks(prompter.check_budget, used_rows, "Checking the length of prompts", **by))
    return prompter, answer_ids


def _prompts_identity(config, texts, dataset, sentences, tokenizer, max_tokens, soft, answer_ids):
    """Names what the words and the form of prompts depend on, but for the rows, the LLM and the item vectors."""
    keys = ["history_size", "history_order", "history_window", "eval_history", "train_history"]
    keys += ["history_recent_size"] if reads_both(config) else []
    settings = [config[key] for key in keys]
    # Numbers of histories are in no prompt, but another run's make other scores of the same prompts.
    soft = [soft.first, soft.items, soft.of, soft.of_row, config["history_fields"]] if soft is not None else []
    frame = [tokenizer.start, tokenizer.framed("")]  # the chat format
    words = [dataset.words[kind].content() for kind in ("user", "item")]
    return fingerprint(texts, settings + soft, frame, words, sentences, max_tokens, answer_ids)


def assemble(dataset, parts):
    """Make all that turns the rows of a split into scores.

    Args:
        dataset (ReLLaDataset): with rows, histories, words and splits.
        parts (list of ReLLaDataset): train, valid and test, with row_id and the kind of their histories.

    Returns:
        Assembly: of all parts.

    Raises:
        RellaError: a template, encoder, LLM or answer word that cannot be used.
    """
    config, rows, folder = dataset.config, dataset.rows, cache_folder(dataset.config)
    texts = template_texts(config)
    template = make_template(dataset, texts)
    row_texts = RowTexts(
        rows=rows,
        histories=dataset.histories,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        template=template,
        **shown_by(config),
        features=history_features(dataset, template.numbers, asked_by="prompt_template") if template.numbers else None,
    )
    _warn_of_nameless(template, dataset.item_num)
    crm, numbers = conventional_model(config, dataset), history_numbers(config, dataset)
    # Behaviours that are close to the target count in numbers, whatever the prompts show.
    by_closeness = row_texts.features is not None and row_texts.features.searches
    used = [(part.inter_feat[ROW_ID].numpy(), part.inter_feat[KIND].numpy()) for part in parts]
    used_rows = np.unique(np.concatenate([row_ids for row_ids, _ in used]))
    retrieved_rows = np.unique(np.concatenate([row_ids[kinds != RECENT] for row_ids, kinds in used]))
    samples = [row_ids[0] for row_ids, _ in used if len(row_ids)]
    if not by_closeness:
        _try_template(config, row_texts, samples, used_rows)

    sentences = item_sentences(dataset, template)
    searches_all = by_closeness or (numbers is not None and numbers.searches)
    retrieves = len(retrieved_rows) > 0 or not scores_rows(config) or searches_all
    retrieval = Retrieval(dataset, sentences, used_rows if searches_all else retrieved_rows) if retrieves else None

    told = found_by = None
    if config["spa"] and "history" in config["spa_tokens"]:  # the embedded LLM learns from them
        if retrieves:
            check_encoder(config)
        found_by = retrieval.retriever if numbers.searches and not retrieval.needs_llm else None
        told = numbers.searching(found_by)
    backbone = make_backbone(config, llm_path(dataset, texts, template, told, found_by))
    if config["llm"] == "mini":
        logger.warning(
            "llm: mini has read the ratings of the training split while it was pretrained: train_shots says how many rows tune it, "
            "not how many it has seen. Few-shot results need a real LLM."
        )
    if retrieves:
        retrieval.with_llm(backbone)
    tokenizer, max_tokens = make_tokenizer(config, backbone, template.system)
    soft = soft_places(config, dataset, crm, backbone.vocabulary)
    if by_closeness:
        row_texts = replace(row_texts, features=row_texts.features.searching(retrieval.retriever))
        _try_template(config, row_texts, samples, used_rows)
    by = {"workers": config["worker"], "show_progress": config["show_progress"]}
    prompter, answer_ids = _with_tokens(row_texts, tokenizer, max_tokens, soft, used_rows, samples, by)
    # After the last check that needs no vectors.
    space, retriever = (retrieval.space, retrieval.retriever) if retrieves else (None, None)
    prompter = replace(prompter, retriever=retriever)
    if numbers is not None:
        sources = {**soft.sources, "history": numbers.searching(retriever)}
        prompter = replace(prompter, soft=replace(soft, sources=sources))

    prompts = _prompts_identity(config, texts, dataset, sentences, tokenizer, max_tokens, prompter.soft, answer_ids)
    identities = {
        "rows": dataset.rows_identity(parts),
        "llm": backbone.identity and f"{backbone.identity}, {backbone.dtype}, {backbone.quantization or 'not quantized'}",
        "encoder": space and space_identity(config, space),
        "prompts": prompts,
        "crm": crm and crm.identity,
    }
    prompter, milliseconds = _with_stored(prompter, used, space, backbone, prompts, folder, by)
    return Assembly(texts, prompter, backbone, answer_ids, space, crm, identities, milliseconds[config["eval_history"]])


def _with_stored(prompter, used, space, backbone, prompts, folder, by):
    """The prompter with the prompts of all parts made; milliseconds a prompt, by the name of its kind."""
    rows = prompter.rows
    columns = [column for column in (rows.user, rows.item, rows.time, rows.rating, rows.label, rows.split) if column is not None]
    known = backbone.identity is not None
    retrieval = [] if space is None else [space.vectors, space.metric]
    identity = fingerprint(prompts, backbone.identity, *columns, *retrieval) if known else None
    stored = {}
    for kind in KINDS.values():
        row_ids = np.concatenate([row_ids[kinds == kind] for row_ids, kinds in used])
        stored[kind] = stored_prompts(prompter, row_ids, kind, identity, folder, **by)
    stored = {kind: prompts for kind, prompts in stored.items() if prompts is not None}
    searched = prompter.retriever.ahead.milliseconds if prompter.retriever is not None else 0.0
    milliseconds = {
        name: (stored[kind].milliseconds if kind in stored else 0.0) + (0.0 if kind == RECENT else searched)
        for name, kind in KINDS.items()
    }
    return replace(prompter, stored=stored), milliseconds

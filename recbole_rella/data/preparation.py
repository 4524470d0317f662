"""What stands between the split and the first batch: template, LLM, item vectors, retrieval, tokenizer and their checks.

Cheap checks come first: a bad template, encoder or LLM stops the run before anything is encoded or pretrained.
"""

import logging
import os
from pathlib import Path

import numpy as np

from recbole_rella.config import chat_template, template_file
from recbole_rella.files import fingerprint
from recbole_rella.llm.backbone import Backbone
from recbole_rella.llm.mini import MiniSettings, mini_llm
from recbole_rella.prompt.prompter import Prompter
from recbole_rella.prompt.stored_prompts import store_prompts
from recbole_rella.prompt.template import PromptTemplate, TemplateError
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.retrieval.encoder import (
    HiddenStateEncoder,
    ItemSpace,
    SentenceTransformersEncoder,
    TfidfEncoder,
)
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.fields import RETRIEVED, ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TRAIN

logger = logging.getLogger(__name__)


def cache_folder(config):
    """Where item vectors and embedded LLMs are kept: cache_dir, or recbole_rella in the user's cache folder."""
    if config["cache_dir"]:
        return Path(config["cache_dir"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recbole_rella"


def template_texts(config):
    """The texts of the template and its parts, as PromptTemplate takes them."""
    layout = template_file(config["prompt_template"]).read_text(encoding="utf-8")
    parts = {part: config[f"prompt_{part}"] for part in ("profile", "item", "rating", "question", "system", "noun")}
    return {"layout": layout, "answers": tuple(config["prompt_answers"]), "verb": "", **parts}


def _make_template(dataset, texts):
    return PromptTemplate(
        **texts,
        user_fields=lambda user: dataset.words_of("user", user),
        item_fields=lambda item: dataset.words_of("item", item),
    )


def _warn_of_nameless(template, num_items):
    nameless = [item for item in range(1, num_items) if not template.has_name(item)]
    if len(nameless) == num_items - 1:
        raise TemplateError(
            "prompt_item: expected a text that names items, found one that renders to nothing for every item of the data "
            "set; check the fields in prompt_item against the .item file."
        )
    if nameless:
        logger.warning(
            "%d of %d items have no name in prompt_item's fields, and are shown by their id.", len(nameless), num_items - 1
        )


def _search(dataset, vectors, k, metric="cosine"):
    return Retriever(dataset.rows, dataset.histories, vectors, k, metric, dataset.config["retrieval_chunk_size"])


def _pretrained_mini(dataset, train_rows, template_texts, sentences):
    """The folder of the embedded LLM for this training split."""
    config, rows, histories = dataset.config, dataset.rows, dataset.histories
    template, folder = dataset.prompter.template, cache_folder(config)
    settings = MiniSettings(
        hidden_size=config["mini_hidden_size"],
        num_layers=config["mini_num_layers"],
        num_heads=config["mini_num_heads"],
        vocab_size=config["mini_vocab_size"],
        epochs=config["mini_epochs"],
        learning_rate=float(config["mini_learning_rate"]),
        weight_decay=float(config["mini_weight_decay"]),
        seed=config["seed"],
    )
    # A retriever that needs no LLM, as there is none yet.
    vectors = ItemSpace(sentences, TfidfEncoder(), config["retrieval_pca_dim"], "cosine", folder).vectors
    prompter = Prompter(rows, histories, template, config["mini_history_size"], "time")
    prompter.retriever = _search(dataset, vectors, config["mini_history_size"])
    # As many documents as it takes to show each training row once.
    count = -(-len(train_rows) // (config["mini_history_size"] + 1))

    def documents(epoch):
        random = np.random.default_rng((config["seed"], epoch))
        chosen = random.choice(train_rows, size=count)
        retrieved = random.random(count) < 0.5
        shown = prompter.shown(chosen, rows.item[chosen], retrieved)
        return [prompter.document(int(row), s) for row, s in zip(chosen, shown)]

    texts = [template.item(item)["text"] + "\n" for item in range(1, dataset.item_num)] + sentences[1:]
    texts += [template.profile(user)["profile"] + "\n" for user in range(1, dataset.user_num)]
    # Behaviours that no split holds (min_history) are read as history of training rows, and only so.
    read = np.flatnonzero(np.isin(rows.split, (TRAIN, NO_SPLIT)) & (np.arange(len(rows)) <= train_rows.max()))
    columns = [column[read] for column in (rows.user, rows.item, rows.time, rows.rating, rows.label) if column is not None]
    key = fingerprint(template_texts, texts, vectors, train_rows, read, *columns, config["mini_history_size"])
    return mini_llm(texts, documents, count, key, settings, folder, config["device"], config["show_progress"])


def _encoder(config, backbone):
    """The encoder of item sentences; the LLM's own one waits for the LLM."""
    name = config["retrieval_encoder"]
    if name == "tfidf":
        return TfidfEncoder()
    if name == "llm" and backbone.is_sharded:
        raise ValueError(
            "retrieval_encoder: expected tfidf or a sentence-transformers model with an LLM that is divided among processes, which "
            "encodes nothing, found llm."
        )
    if name == "llm":
        return HiddenStateEncoder(backbone, config["retrieval_pooling"], config["eval_micro_tokens"])
    return SentenceTransformersEncoder(name, config["device"])


def prepare(dataset, parts):
    """Give a split data set its prompter, LLM and answer tokens.

    Args:
        dataset (ReLLaDataset): with rows, histories and splits; gets `prompter`, `backbone` and `answer_ids`.
        parts (list of ReLLaDataset): train, valid and test, with row_id and whether their prompts show retrieved
            behaviours.

    Raises:
        ValueError: a template, encoder, LLM or answer word that cannot be used; TemplateError, LLMError,
            AnswerTokenError and PromptBudgetError are kinds of it.
    """
    config, rows = dataset.config, dataset.rows
    texts = template_texts(config)
    template = _make_template(dataset, texts)
    prompter = Prompter(rows, dataset.histories, template, config["history_size"], config["history_order"])
    dataset.prompter = prompter
    _warn_of_nameless(template, dataset.item_num)

    used = [(part.inter_feat[ROW_ID].numpy(), part.inter_feat[RETRIEVED].numpy().astype(bool)) for part in parts]
    used_rows = np.unique(np.concatenate([row_ids for row_ids, _ in used]))
    retrieved_rows = np.unique(np.concatenate([row_ids[retrieved] for row_ids, retrieved in used]))

    def recent(place):
        row = used_rows[[place]]
        return prompter.shown(row, rows.item[row], np.array([False]))[0]

    # Renders a prompt of each split, so that a template that asks for what is not there fails before anything is made.
    samples = [int(np.argmin(np.abs(used_rows - row_ids[0]))) for row_ids, _ in used if len(row_ids)]
    for place in samples:
        prompter.text(used_rows[place], rows.item[used_rows[place]], recent(place))

    sentences = [""] + [template.sentence(item, config["retrieval_sentence"]) for item in range(1, dataset.item_num)]
    encoder = None
    if len(retrieved_rows) and config["retrieval_encoder"] != "llm":
        encoder = _encoder(config, None)  # an unknown one fails here, before any pretraining

    llm = config["llm"]
    if llm == "mini":
        if rows.label is None:
            raise ValueError(
                "llm: expected a Hugging Face LLM for a data set without labels, found mini, which learns from labels; "
                "set threshold, or another llm."
            )
        llm = _pretrained_mini(dataset, dataset.pool, texts, sentences)
        logger.warning(
            "llm: mini has read the ratings of the whole training split (or of train_pool) while it was pretrained: train_shots "
            "says how many rows tune it, not how many it has seen. Few-shot results need a real LLM."
        )
    backbone = Backbone(
        llm,
        config["device"],
        config["llm_dtype"],
        config["llm_quantization"],
        config["llm_attn_implementation"],
        config["llm_trust_remote_code"],
        config["llm_shard"],
    )
    dataset.backbone = backbone

    answers = tuple(config["prompt_answers"])
    chat = config["prompt_chat"]
    prompter.tokenizer = PromptTokenizer(backbone.tokenizer, chat, template.system, answers, chat_template(chat))
    positions = backbone.max_positions
    prompter.max_tokens = min(config["max_prompt_tokens"], positions or config["max_prompt_tokens"])
    random = np.random.default_rng(0)
    places = [*samples, *random.choice(len(used_rows), size=min(200, len(used_rows)), replace=False)]
    endings = [prompter.text(used_rows[p], rows.item[used_rows[p]], recent(p)[-1:]) for p in places]
    dataset.answer_ids = prompter.tokenizer.answer_ids(endings)
    _check_joined_lines(prompter, used_rows, recent, places[:50])
    prompter.check_budget(used_rows)

    dataset.encoder_identity = dataset.item_space = None
    folder = cache_folder(config)
    milliseconds = {False: 0.0, True: 0.0}
    if len(retrieved_rows) or config["eval_args"]["mode"] != {"valid": "labeled", "test": "labeled"}:
        encoder = encoder or _encoder(config, backbone)
        dataset.encoder_identity = encoder.identity
        dataset.item_space = ItemSpace(sentences, encoder, config["retrieval_pca_dim"], config["retrieval_metric"], folder)
        prompter.retriever = _search(dataset, dataset.item_space.vectors, config["history_size"], config["retrieval_metric"])
        milliseconds[True] += prompter.retriever.prepare(retrieved_rows, folder)
    key = _prompts_key(dataset, texts)
    for kind in (False, True):
        asked = np.concatenate([row_ids[retrieved == kind] for row_ids, retrieved in used])
        milliseconds[kind] += store_prompts(prompter, asked, kind, key, folder)
    dataset.milliseconds_a_prompt = milliseconds[config["eval_history"] == "retrieved"]


def _prompts_key(dataset, texts):
    """Fingerprint of what the token ids of a row's prompt depend on, but for the row and whether it shows retrieved ones."""
    config, rows, prompter = dataset.config, dataset.rows, dataset.prompter
    columns = [column for column in (rows.user, rows.item, rows.time, rows.rating, rows.label, rows.split) if column is not None]
    settings = [config[key] for key in ("history_size", "history_order", "prompt_words", "retrieval_metric")]
    settings += [prompter.tokenizer.start, prompter.tokenizer.framed("")]  # the chat format
    vectors = [] if dataset.item_space is None else [dataset.item_space.vectors]
    words = [{field: list(map(str, texts)) for field, texts in table.items()} for table in dataset.words()]
    return fingerprint(texts, settings, words, dataset.backbone.identity, prompter.max_tokens, *columns, *vectors)


def _check_joined_lines(prompter, used_rows, recent, places):
    for place in places:
        text = prompter.text(used_rows[place], prompter.rows.item[used_rows[place]], recent(place))
        if prompter.tokenizer.ids(text) != prompter.tokenizer.whole(text):
            prompter.tokenizer.tokenize_whole()
            return

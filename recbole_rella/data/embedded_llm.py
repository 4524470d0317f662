"""The embedded LLM of a data set (`llm: mini`): which documents it reads. llm/mini.py pretrains it.

It has a retrieval of its own: no setting of the run's retrieval, and no text that its documents do not show, makes another LLM.
"""

import jinja2
import numpy as np
from jinja2 import meta

from recbole_rella.data.history import cached_numbers, history_features
from recbole_rella.files import cache_key
from recbole_rella.llm.mini import Document, MiniSettings, Numbers, mini_llm
from recbole_rella.prompt.prompter import RowTexts
from recbole_rella.prompt.template import FOR_DOCUMENTS
from recbole_rella.retrieval.encoder import TfidfEncoder
from recbole_rella.retrieval.item_space import item_space
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.item_statistics import training_rows

# Its retrieval needs no LLM, as there is none yet.
_SENTENCE, _PCA_DIM = "{{ item | fields }}", 512


def _texts_shown(texts):
    """The texts of a template that a document can show: a system text belongs to chat LLMs, unless the layout names it."""
    named = meta.find_undeclared_variables(jinja2.Environment().parse(texts["layout"]))
    return {name: text for name, text in texts.items() if name != "system" or name in named}


def embedded_llm(dataset, texts, template, folder, features=None, found_by=None):
    """Pretrain the embedded LLM on the training split, or take it from the cache.

    A document is the prompt of a training row (of train_pool, where it is set) with its answer. Its history holds earlier rows of
    the user, whose ratings are learned too: other training rows, and those that min_history leaves out of all splits.

    Args:
        dataset (ReLLaDataset): split.
        texts (dict): of the template, by name.
        template (PromptTemplate): renders them.
        folder (pathlib.Path): the cache.
        features (HistoryFeatures, optional): of which soft tokens of prompts are made; its documents have such tokens too then.
        found_by (Retriever, optional): by which these features search.

    Returns:
        pathlib.Path: a Hugging Face checkpoint folder.

    Raises:
        TemplateError: a document says something else than the prompt of its row.
    """
    config, rows, histories, train_rows = dataset.config, dataset.rows, dataset.histories, dataset.pool
    settings = MiniSettings(
        hidden_size=config["mini_hidden_size"],
        num_layers=config["mini_num_layers"],
        num_heads=config["mini_num_heads"],
        vocab_size=config["mini_vocab_size"],
        epochs=config["mini_epochs"],
        learning_rate=float(config["mini_learning_rate"]),
        weight_decay=float(config["mini_weight_decay"]),
        dropout=float(config["mini_dropout"]),
        seed=config["seed"],
    )
    history_size = config["mini_history_size"]
    sentences = ["", *(template.sentence(item, _SENTENCE) for item in range(1, dataset.item_num))]
    vectors = item_space(sentences, TfidfEncoder(), _PCA_DIM, "cosine", folder).vectors
    retriever = Retriever(rows, histories, vectors, history_size, "cosine")
    row_texts = RowTexts(
        rows=rows,
        histories=histories,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        template=template,
        history_size=history_size,
        history_order="time",
        retriever=retriever,
        features=history_features(dataset, template.numbers, retriever, "prompt_template") if template.numbers else None,
    )
    row_texts.check_marks(train_rows, **FOR_DOCUMENTS)
    # As many documents as it takes to show each training row once.
    count = -(-len(train_rows) // (history_size + 1))

    def documents(epoch):
        random = np.random.default_rng((config["seed"], epoch))
        chosen = random.choice(train_rows, size=count)
        retrieved = random.random(count) < 0.5
        shown = row_texts.shown(chosen, rows.item[chosen], retrieved)
        return [_document(row_texts, int(row), behaviours) for row, behaviours in zip(chosen, shown)]

    vocabulary = [template.item(item)["text"] + "\n" for item in range(1, dataset.item_num)] + sentences[1:]
    vocabulary += [template.profile(user)["profile"] + "\n" for user in range(1, dataset.user_num)]
    read = np.flatnonzero(training_rows(rows))  # the pool's and, for the numbers, the others
    columns = [column[read] for column in (rows.user, rows.item, rows.time, rows.rating, rows.label) if column is not None]
    words = [dataset.words[kind].content() for kind in ("user", "item")]
    numbers, answers = None, tuple(f" {answer}" for answer in reversed(texts["answers"]))
    if features is not None:
        pool = np.searchsorted(read, train_rows)
        numbers = Numbers(features.names, read, cached_numbers(features, read, folder, found_by), rows.label[read], pool, answers)
    told = () if numbers is None else (numbers.names, numbers.table)
    key = cache_key(_texts_shown(texts), vocabulary, words, vectors, train_rows, read, *columns, history_size, *told)
    return mini_llm(vocabulary, documents, count, key, settings, folder, config["device"], config["show_progress"], numbers)


def _document(row_texts, row, shown):
    text, spans, first = row_texts.document(row, shown)
    return Document(text, spans, {span: int(shown[number - 1]) if number else row for number, span in first.items()})

"""ReLLaX in a run: which soft tokens its prompts have, what these and its gates are made of, and the modules in its LLM.

Vectors of items and users are those of a conventional model (`crm`, see crm.py), each column with mean 0 and deviation 1 over those
that have training rows. What has none, and an item that the data set does not have, is the average one: zeros.
"""

import numpy as np
import torch

from recbole_rella.data.crm import CrmError, RowVectors, read_crm, standardized
from recbole_rella.data.history import history_features
from recbole_rella.key_rules import history_names, names_a_run, text_encoder
from recbole_rella.llm.cflora import Gates
from recbole_rella.llm.rellax import EncodedNumbers, Rellax
from recbole_rella.llm.soft_tokens import SoftTokenError, SoftTokens
from recbole_rella.prompt.soft_places import OF_ITEMS, SoftPlaces, UserVectors


def conventional_model(config, dataset):
    """The vectors of the conventional model that a configuration names, as soft tokens take them.

    Args:
        config (recbole.config.Config): with crm.
        dataset (ReLLaDataset): split.

    Returns:
        Crm or None: with standardized vectors; None where no soft token needs it.

    Raises:
        CrmError: as `read_crm`; or it has no vectors of users, which a soft token wants.
    """
    kinds = wanted(config)
    if not {*OF_ITEMS, "user", "row"} & kinds:
        return None
    if not names_a_run(config["crm"]):
        raise CrmError(
            f"crm: expected the folder of a finished run, found {config['crm']!r}. A model of that name is trained first where "
            "ReLLa is run by the command, by run_stages or side by side."
        )
    crm, rows, pool = read_crm(config["crm"], dataset), dataset.rows, dataset.pool
    if "user" in kinds and crm.users is None:
        raise CrmError(
            f"crm: expected a model with vectors of users, as spa_tokens or cflora_input has user; {crm.model} has none."
        )
    if "row" in kinds and crm.rows is None:
        raise no_rows(crm.model)
    users = None if crm.users is None else _of_trained(crm.users, rows.user[pool])
    return crm.with_vectors(_of_trained(crm.items, rows.item[pool]), users)


def wanted(config):
    """The kinds of vectors of which a configuration's soft tokens and gates are made, set of str."""
    return {*(config["spa_tokens"] if config["spa"] else ()), *([config["cflora_input"]] if config["cflora"] else ())}


def no_rows(model):
    """The error of a conventional model, by name, from which `row` cannot be made, CrmError."""
    return CrmError(
        f"crm: expected a model with representations of rows (row_vectors), as spa_tokens or cflora_input has row, found {model}, "
        "which has none (SIM has)."
    )


def _of_trained(vectors, trained):
    """Standardized vectors; zeros for those without training rows."""
    trained = np.unique(trained)
    found = np.zeros_like(vectors)
    found[trained] = standardized(vectors, trained)[trained]
    return found


def soft_places(config, dataset, crm, vocabulary):
    """The soft tokens of the prompts of a data set.

    Args:
        config (recbole.config.Config): with spa, spa_tokens, cflora and cflora_input.
        dataset (ReLLaDataset): split.
        crm (Crm or None): as `conventional_model` gives it.
        vocabulary (int): tokens of the LLM.

    Returns:
        SoftPlaces or None: None where there are neither; numbers of histories are a source that comes later (`history_numbers`).
    """
    kinds, sources = wanted(config), {}
    if not kinds:
        return None
    of = tuple(config["spa_tokens"]) if config["spa"] else ()
    if "user" in kinds:
        sources["user"] = UserVectors(crm.users, dataset.rows.user)
    with_items = set(OF_ITEMS) & set(of)
    if "row" in kinds:
        sources["row"] = RowVectors(crm)
    items = len(crm.items) if with_items else 0
    gate = config["cflora_input"] if config["cflora"] else None
    return SoftPlaces(first=vocabulary, of=of, gate=gate, items=items, places=np.arange(items), sources=sources)


def _names(config, dataset):
    """The numbers of histories that soft tokens or gates are made of, tuple of str."""
    if "history" not in wanted(config):
        return ()
    return history_names(config["history_fields"], dataset.category_field(), dataset.rows.timed)


def check_encoder(config):
    """The embedded LLM that learns from numbers of histories encodes no items.

    Raises:
        SoftTokenError: it would: numbers may be made of item vectors, and models that show no prompts (SIM, Tree, FM+history) would
            search by those of an LLM that knows no numbers.
    """
    if config["llm"] == "mini" and text_encoder(config) == "llm":
        raise SoftTokenError(
            "retrieval_encoder: expected tfidf, mix or a sentence-transformers model where the embedded LLM (mini) learns from "
            "numbers (history of spa_tokens) and behaviours are retrieved (train_history, eval_history, similar_* of "
            "history_fields), found llm (or mix with retrieval_mix_encoder llm): models beside it would search by another LLM. "
            "Choose another encoder."
        )


def history_numbers(config, dataset):
    """The numbers of histories that soft tokens or gates are made of; what they search by is not known yet.

    Args:
        config (recbole.config.Config), dataset (ReLLaDataset): with history_fields; split.

    Returns:
        HistoryFeatures or None: None where there are none.
    """
    if "history" not in wanted(config):
        return None
    return history_features(dataset, history_names(config["history_fields"], dataset.category_field(), dataset.rows.timed))


def make_rellax(config, llm, assembly, train_rows):
    """The soft tokens and the gates of a run, put into its LLM.

    Args:
        config (recbole.config.Config): with spa_* and cflora_*.
        llm (peft.PeftModel): with LoRA adapters.
        assembly (Assembly): of the run.
        train_rows (numpy.ndarray): row_ids, int [n], by which numbers of histories are standardized.

    Returns:
        Rellax or None: None where there are neither.
    """
    places, crm = assembly.prompter.soft, assembly.crm
    if places is None:
        return None
    numbers = None
    if (source := places.sources.get("history")) is not None:
        numbers = EncodedNumbers(source.names, source.of_rows(np.unique(train_rows)))
    sizes = {"user": 0 if crm is None or crm.users is None else crm.users.shape[1]}
    sizes["row"] = 0 if crm is None or crm.rows is None else crm.rows.shape[1]
    inits = {"spa": config["spa_init"], "cflora": config["cflora_init"]}
    # Tokens that change a prompt least: a line break behind an item, the last token once more at the end. With the embedded LLM on
    # ml-100k either leaves the AUC of validation where it was, to .0005; the mean of all embeddings costs .03.
    prompter, row = assembly.prompter, int(train_rows[0])
    text = prompter.text(row, prompter.rows.item[row], prompter.recent(row))
    line_break = prompter.tokenizer.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    neutral = {"item": line_break, "row": prompter.tokenizer.ids(text)[-1]}
    rellax = rellax_of(llm, places, inits, neutral, None if crm is None else crm.items, sizes, numbers)
    if rellax.soft is not None:
        rellax.soft.take(assembly.backbone.folder)
    return rellax


def rellax_of(llm, places, inits, neutral, items, sizes, numbers):
    """Soft tokens and gates of an LLM.

    Args:
        llm (peft.PeftModel): with LoRA adapters.
        places (SoftPlaces): which there are.
        inits (dict): spa, cflora -> how they begin.
        neutral (dict): as for `SoftTokens`.
        items (numpy.ndarray or None): vectors of items, float32 [items, E].
        sizes (dict): user, row -> size of their vectors.
        numbers (EncodedNumbers or None): of the numbers of histories.

    Returns:
        Rellax: of them.
    """
    raw = {**sizes, "history": 0 if numbers is None else len(numbers.mean)}
    soft = SoftTokens(llm.get_base_model(), places, inits["spa"], neutral, items, sizes, numbers) if places.of else None
    gates = None
    if places.gate is not None:
        is_numbers = places.gate == "history"
        size = numbers.size if is_numbers else raw[places.gate]
        gates = Gates(llm, size, inits["cflora"], numbers if is_numbers else torch.nn.Identity())
    return Rellax({kind: raw[kind] for kind in places.kinds}, soft, gates, places.gate)

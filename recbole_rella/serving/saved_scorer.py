"""A scorer as a folder of its own, which needs neither the run nor its data set, and works on another machine.

scorer.json     settings, texts of the prompts, the LLM and the encoder by name and identity, versions
texts.json      ids, words and sentences of the items
catalogue.npz   their vectors; answers of the training rows, where prompts print numbers of them
adapter/        the adapters, in PEFT's standard format, and what ReLLaX adds to them
llm/            the embedded LLM; another one is named, and proved by its identity when it is loaded
"""

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from recbole_rella.config import cache_folder, chat_template
from recbole_rella.errors import RellaError
from recbole_rella.files import is_new, replacing_folder, write_json
from recbole_rella.key_rules import TRANSFORMERS, text_encoder
from recbole_rella.keys import affecting, check_engine, refuse
from recbole_rella.llm.backbone import Backbone, save_adapter, with_adapter
from recbole_rella.llm.gguf_file import is_gguf, unpacked
from recbole_rella.prompt.soft_places import OF_ROWS
from recbole_rella.prompt.template import PromptTemplate
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.prompt.words import Words
from recbole_rella.retrieval.encoder import make_encoder
from recbole_rella.retrieval.item_space import ItemSpace, MixedSpace
from recbole_rella.retrieval.taste import Taste
from recbole_rella.rows.item_statistics import ItemStatistics
from recbole_rella.run_folder import ADAPTER, LLM
from recbole_rella.serving.catalogue import Catalogue
from recbole_rella.serving.soft_requests import OF_ROWS_ALONE, SoftRequests
from recbole_rella.version import VERSION

_SCORER, _TEXTS, _CATALOGUE = "scorer.json", "texts.json", "catalogue.npz"
_STATISTICS, _TASTE = ("items", "times", "answers"), ("vectors", "deviations")


class ScorerError(RellaError):
    """A scorer cannot be saved or loaded; the message says why."""


def save(scorer, folder):
    """Write a scorer; whole or not at all.

    Args:
        scorer (Scorer): of a run.
        folder (str or pathlib.Path): new or empty.

    Raises:
        ScorerError: there is something in the folder, or the scorer has no run behind it.
        OutputError: there is no place for a folder.
    """
    folder = Path(folder).expanduser()
    if scorer.dataset is None:
        raise ScorerError("save_pretrained: expected the scorer of a run (Scorer.load), found one that was saved: copy its folder.")
    if scorer.parts.soft is not None and "row" in scorer.parts.soft.places.kinds:
        raise ScorerError(f"save_pretrained: {OF_ROWS_ALONE}")
    if not is_new(folder):
        raise ScorerError(f"save_pretrained: expected a new or an empty folder, found {folder}, which is neither.")
    parts, config, backbone = scorer.parts, scorer.config, scorer.dataset.assembly.backbone
    catalogue, space = parts.catalogue, parts.item_space
    chat = chat_template(config["prompt_chat"])
    # That of a run lies in its folder, and goes with it; others may have any size.
    is_embedded = backbone.folder is not None and backbone.folder.name == LLM and (backbone.folder.parent / ADAPTER).is_dir()
    with replacing_folder(folder) as temporary:
        temporary.mkdir()
        if is_embedded:
            shutil.copytree(backbone.folder, temporary / LLM)
        save_adapter(parts.llm, temporary / ADAPTER)
        arrays = {} if space is None else {f"space.{name}": array for name, array in space.arrays.items()}
        if parts.soft is not None:
            parts.soft.module.save(temporary / ADAPTER)
            arrays |= {} if parts.soft.table is None else {"soft.table": parts.soft.table}
        for kind in ("statistics", "likes"):
            if (statistics := getattr(parts, kind)) is not None:
                arrays |= {f"{kind}.{name}": getattr(statistics, name) for name in _STATISTICS}
        if parts.alike is not None:
            arrays["alike"] = parts.alike
        if parts.taste is not None:
            arrays |= {f"taste.{name}": getattr(parts.taste, name)[-1:] for name in _TASTE}
        np.savez(temporary / _CATALOGUE, **arrays)
        texts = {
            "item_ids": list(map(str, catalogue.item_ids)),
            "words": {field: list(map(str, words)) for field, words in catalogue.items.table.items()},
            "sentences": None if space is None else space.sentences,
        }
        write_json(temporary / _TEXTS, texts)
        llm = LLM if is_embedded else str(backbone.folder.resolve()) if backbone.folder else backbone.path
        if is_gguf(config["llm"]):  # whose folder is this machine's cache
            llm = str(Path(config["llm"]).expanduser().resolve())
        write_json(
            temporary / _SCORER,
            {
                "version": VERSION,
                "llm": {"path": llm, "revision": backbone.commit, "identity": backbone.identity, "dtype": _name(backbone.dtype)},
                "encoder": None if space is None else space.encoder.identity,
                "settings": {key: config[key] for key in affecting("llm", "retrieval", "prompts", "evaluation", "cost")},
                "texts": {**parts.texts, "answers": list(parts.texts["answers"])},
                "chat": chat,
                "max_tokens": parts.max_tokens,
                "tokenizes_whole": parts.tokenizer.tokenizes_whole,
                "answer_ids": list(parts.answer_ids),
                "soft": None if parts.soft is None else parts.soft.plain(),
                "catalogue": {
                    "dataset": catalogue.dataset,
                    "id_fields": dict(catalogue.id_fields),
                    "types": {kind: dict(types) for kind, types in catalogue.types.items()},
                    "codes": catalogue.items.codes,
                    "separator": catalogue.separator,
                    "rating_type": catalogue.rating_type,
                    "has_label": catalogue.has_label,
                    "threshold": catalogue.threshold,
                },
            },
        )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def load(folder, device=None, engine=MappingProxyType({})):
    """Read a scorer.

    Args:
        folder (str or pathlib.Path): as `save` left it.
        device (str or torch.device, optional): of the LLM; a GPU where there is one by default.
        engine (Mapping): scoring_engine and vllm_args; transformers by default.

    Returns:
        dict: the arguments of `Parts`.

    Raises:
        ScorerError: the folder holds no scorer, or its LLM or encoder is not the one that it was saved with.
        LLMError: its LLM, or its adapters, cannot be loaded.
    """
    folder = Path(folder).expanduser()
    try:
        saved, told = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (_SCORER, _TEXTS))
        with np.load(folder / _CATALOGUE, allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # of files, zip archives and JSON: whatever the damage, the remedy is the same
        raise ScorerError(
            f"from_pretrained: expected a scorer that save_pretrained wrote, found {folder}, which does not read ({error}). "
            "Save it again."
        ) from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {**saved["settings"], "scoring_engine": TRANSFORMERS, **engine}
    named = saved["llm"]
    _check_soft(saved["soft"], saved["version"])
    has_gates = saved["soft"] is not None and saved["soft"]["places"]["gate"] is not None
    refuse(check_engine({**settings, "cflora": has_gates}))
    backbone = Backbone(
        folder / LLM if named["path"] == LLM else _unpacked(named["path"]) if is_gguf(named["path"]) else named["path"],
        device,
        named["dtype"],
        settings["llm_quantization"],
        settings["llm_attn_implementation"],
        settings["llm_trust_remote_code"],
        revision=named["revision"],
    )
    _compare("LLM", named["identity"], backbone.identity, named["path"])
    texts = {**saved["texts"], "answers": tuple(saved["texts"]["answers"])}
    catalogue = _catalogue(saved["catalogue"], told)
    # Its system text shows no item and no user.
    system = PromptTemplate(**texts, user_fields=dict, item_fields=dict).system
    chat = "always" if saved["chat"] else settings["prompt_chat"]
    tokenizer = PromptTokenizer(backbone.tokenizer, chat, system, texts["answers"], saved["chat"])
    space = None
    if told["sentences"] is not None:
        encoder = make_encoder(text_encoder(settings), backbone, {**settings, "device": device, "show_progress": False})
        _compare("encoder", saved["encoder"], encoder.identity, text_encoder(settings))
        made = {name: arrays[f"space.{name}"] for name in ("vectors", "mean", "components")}
        collaborative, metric = arrays.get("space.collaborative"), settings["retrieval_metric"]
        of_text = metric if collaborative is None else "dot"
        space = ItemSpace(told["sentences"], encoder, settings["retrieval_pca_dim"], of_text, made)
        if collaborative is not None:
            space = MixedSpace(space, collaborative, settings["retrieval_mix"], metric)

    def kept(kind, make, names):
        return make(*(arrays[f"{kind}.{name}"] for name in names)) if f"{kind}.{names[0]}" in arrays else None

    llm, soft = with_adapter(backbone.model, folder / ADAPTER), None
    if saved["soft"] is not None:
        soft = SoftRequests.saved(llm, saved["soft"], arrays.get("soft.table"), folder / ADAPTER)
    return {
        "settings": settings,
        "texts": texts,
        "catalogue": catalogue,
        "tokenizer": tokenizer.tokenizing_whole() if saved["tokenizes_whole"] else tokenizer,
        "max_tokens": saved["max_tokens"],
        "item_space": space,
        "llm": llm,
        "answer_ids": tuple(saved["answer_ids"]),
        "device": device,
        "soft": soft,
        "statistics": kept("statistics", ItemStatistics, _STATISTICS),
        "likes": kept("likes", ItemStatistics, _STATISTICS),
        "alike": arrays.get("alike"),
        "taste": kept("taste", Taste, _TASTE),
    }


def _check_soft(soft, version):
    """Before 0.10 what belongs to a row was a soft token for each kind."""
    several = soft is not None and len(set(OF_ROWS) & set(soft["places"]["of"])) > 1
    if several and tuple(map(int, version.split(".")[:2])) < (0, 10):
        raise ScorerError(
            f"from_pretrained: expected one soft token for all that belongs to a row, found one for each ({soft['places']['of']}), "
            f"as version {version} had it. Tune and save it again."
        )


def _unpacked(path):
    """The folder of the LLM in a GGUF file, in this machine's cache."""
    if not Path(path).is_file():
        raise ScorerError(f"from_pretrained: expected the GGUF file that this scorer was saved with at {path}, found none there.")
    return unpacked(path, cache_folder({"cache_dir": None}))


def _compare(what, saved, found, name):
    if saved != found:
        raise ScorerError(
            f"from_pretrained: expected the {what} that this scorer was saved with ({saved}), found another one under {name!r} "
            f"({found}). Put the same one there, or save the scorer again."
        )


def _catalogue(saved, told):
    codes = saved["codes"]
    table = {field: np.array(words, dtype=object) for field, words in told["words"].items()}
    users = {field: np.array([""]) for field in saved["types"]["user"]}
    return Catalogue(
        dataset=saved["dataset"],
        id_fields=saved["id_fields"],
        types=saved["types"],
        item_ids=np.array(told["item_ids"]),
        items=Words(table, codes),
        users=Words(users, codes),
        separator=saved["separator"],
        rating_type=saved["rating_type"],
        has_label=saved["has_label"],
        threshold=saved["threshold"],
    )

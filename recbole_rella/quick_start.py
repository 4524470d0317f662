"""The wiring of a run, for ReLLa and for RecBole's built-in models alike.

RecBole's own quick_start imports ray; here nothing does.
"""

import difflib
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from logging import ERROR, INFO, FileHandler, basicConfig, getLogger
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed, set_color

from recbole_rella import beside, processes
from recbole_rella.ahead import time_ahead
from recbole_rella.compat import anomaly_detection_kept
from recbole_rella.config import errors_of_recbole, is_on_our_rows, is_ours, is_rella, model_names, scores_rows
from recbole_rella.data.crm import learned_kinds, write_vectors
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.data.row_dataset import KeepsRows
from recbole_rella.data.same_rows import same_rows
from recbole_rella.errors import RellaError
from recbole_rella.files import AnyPath, fingerprint, read_yaml
from recbole_rella.fitted_trainer import keeping_predictions
from recbole_rella.given import checked_files, no_command_line
from recbole_rella.key_rules import TRANSFORMERS
from recbole_rella.metrics import row_metrics
from recbole_rella.predictions import KeepsPredictions, row_ids_of
from recbole_rella.reads import words_read
from recbole_rella.report.run_page import write_run_page
from recbole_rella.run_folder import (
    ADAPTER,
    RunError,
    check_is_new,
    floats,
    identities_of,
    read_run,
    write_metrics,
    write_predictions,
)
from recbole_rella.shipped import variant_files

# RecBole imports the packages of both for either.
_TREES = ("LightGBM", "XGBoost")


class ModelError(RellaError):
    """There is no such model."""


def find_model(name):
    """The class of a model, by RecBole's name or its import path (``package.module.Class``); what is no text is left as it is.

    Raises:
        ModelError: there is no such model.
    """
    if not isinstance(name, str):
        return name
    module, dot, cls = name.rpartition(".")
    try:
        with anomaly_detection_kept():
            return getattr(importlib.import_module(module), cls) if dot else get_model(name)
    except (ImportError, AttributeError, ValueError) as error:
        if name in _TREES and isinstance(error, ImportError):
            raise ModelError(
                f"model: expected the packages of RecBole's {' and '.join(_TREES)} to be installed for {name}, found no "
                f"{error.name}: pip install '.[trees]' (Tree needs none of them)."
            ) from error
        nearest = difflib.get_close_matches(name, {*model_names(), *variant_files()} - {name}, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        shipped = ", ".join(sorted(variant_files()))
        raise ModelError(
            f"model: expected a model of RecBole, ReLLa or the import path of a class (side by side, also a YAML file or one of "
            f"{shipped}), found {name!r}{hint or (f' ({error}).' if dot else '.')}"
        ) from error


def make_config(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Config:
    """RecBole's Config; the model may be an import path, also where only a file or the dictionary names it.

    Where the files or the dictionary say resume_from, the folder of that run stands for its LLM and its texts.
    """
    files, given = checked_files(config_file_list), {}
    for source in (*map(read_yaml, files or []), config_dict or {}):
        given.update(source)
    if given.get("resume_from"):
        kept = read_run(given["resume_from"]).settings(given)
        config_dict = {**(config_dict or {}), **{key: value for key, value in kept.items() if given.get(key) != value}}
    if model is None:
        model = given.get("model")
    processes.start()  # before RecBole's Config decides which GPUs can be seen
    with anomaly_detection_kept(), errors_of_recbole():
        config = Config(find_model(model), dataset, files, config_dict)
    if processes.count() > 1:
        _for_this_process(config)
    return config


def _for_this_process(config):
    """One of several processes has a device of its own, and all but the first are quiet and write nothing."""
    if not is_rella(config.model_class):
        raise processes.ProcessError(
            f"model: expected ReLLa with several processes, found {config['model']}, which RecBole trains right with one alone."
        )
    if config["device"].type == "cuda":
        config["device"] = torch.device("cuda", torch.cuda.current_device())
    if not processes.is_first():
        for key, value in {"state": "error", "show_progress": False, "log_wandb": False, "save_dataset": False}.items():
            config[key] = value


def _init_logger(config):
    """RecBole's logger, whose file is the first process's."""
    if processes.is_first():
        init_logger(config)
    else:
        basicConfig(level=ERROR)


def load_data(config):
    """The data of a configuration, seeded as RecBole does it.

    Args:
        config (recbole.config.Config): of any model.

    Returns:
        tuple: data set; list of the data loaders of train, valid and test.
    """
    with processes.first_alone():  # the others find what it made in the caches
        init_seed(config["seed"], config["reproducibility"])
        with nullcontext() if is_ours(config.model_class) or not is_on_our_rows(config) else same_rows(config):
            dataset = create_dataset(config)
        getLogger().info(dataset)
        return dataset, data_preparation(config, dataset)


def _make_model(config, loaders):
    """The model of a configuration, seeded as RecBole does it."""
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    return config.model_class(config, loaders[0]._dataset).to(config["device"])


def _run(config, saved, verbose, callback=None, rivals=False):
    """Train and test. A run folder is completed, if saved and rows are known.

    Returns RecBole's result dictionary and, of a saved run of ReLLa with labelled test rows, what `beside.ending` tells, the models
    of the key beside among it where `rivals` asks for them (else nothing).
    """
    started = time.monotonic()
    logger = getLogger()
    if saved:
        check_is_new(config)
    dataset, loaders = load_data(config)
    model = _make_model(config, loaders)
    train_data, valid_data, test_data = loaders
    logger.info(model)
    if verbose and isinstance(dataset, ReLLaDataset) and model.engine is None and scores_rows(config) and processes.count() == 1:
        logger.info(time_ahead(config, model, [loader._dataset for loader in loaders]))
    prepared = time.monotonic()
    trainer_class = get_trainer(config["MODEL_TYPE"], config["model"])
    keeps = isinstance(dataset, KeepsRows)
    if keeps and not issubclass(trainer_class, KeepsPredictions):
        trainer_class = keeping_predictions(trainer_class)
    trainer = trainer_class(config, model)
    show_progress = verbose and config["show_progress"]
    told = {"callback_fn": callback} if callback else {}  # RecBole's own trainers of trees take none
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, verbose=verbose, saved=saved, show_progress=show_progress, **told
    )
    tuned = time.monotonic()
    learned = learned_kinds(model, dataset) if keeps and not isinstance(dataset, ReLLaDataset) else ()
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=show_progress)
    ended = time.monotonic()
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
    }
    ending = {}
    if saved and keeps and processes.is_first():
        seconds = {
            "preparation": prepared - started,
            "training": trainer.train_seconds,
            "training_and_validation": tuned - prepared,
            "test": ended - tuned,
            "total": ended - started,
        }
        measured = _measured(dataset, loaders, trainer, result, seconds)
        if not isinstance(dataset, ReLLaDataset):
            write_vectors(trainer.run_folder, model, dataset, learned, [loader._dataset for loader in loaders])
        write_metrics(trainer.run_folder, config, trainer, measured)
        if isinstance(dataset, ReLLaDataset) and "test_exact" in measured:
            valid, test = (np.unique(row_ids_of(loader)) for loader in (valid_data, test_data))
            found = beside.rivals_beside(config, dataset, valid, test) if rivals else {}
            if found:
                write_metrics(trainer.run_folder, config, trainer, {**measured, "beside": found})
            own = {**measured["test_exact"], "seconds": measured["seconds"]["total"]}
            ending = {"found": {config["model"]: own, **found}, "folder": trainer.run_folder, "row_id": int(test[0])}
        page = write_run_page(trainer.run_folder, dataset) if rivals and "test_exact" in measured else None
        logger.info(set_color("run folder", "yellow") + f": {trainer.run_folder}" + (f" ({page.name} in it)" if page else ""))
    return result, ending


def _measured(dataset, loaders, trainer, result, seconds):
    """The figures of a run; its predictions are written."""
    row_ids = {name: row_ids_of(loader) for name, loader in zip(("train", "valid", "test"), loaders)}
    found = {name: fingerprint(np.unique(row_id)) for name, row_id in row_ids.items()}
    measured = {
        "valid": floats(result["best_valid_result"]),
        "test": floats(result["test_result"]),
        "rows": {name: len(row_id) for name, row_id in row_ids.items()},
        # By which runs are found to be of the same rows, and to show the same past of them.
        "row_ids": {**found, "past": fingerprint(dataset.rows.split)},
        "reads": words_read(dataset.config, loaders[0]._dataset),
        "shots": len(np.unique(row_ids["train"])),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    predictions, rows = trainer.predictions, dataset.rows
    row_id, scores = predictions["row_id"], predictions["score"]
    # Scores of sampled candidates have no row.
    if len(row_id) and scores_rows(dataset.config, "test"):
        if not np.array_equal(np.sort(row_id), np.sort(row_ids["test"])):
            raise RuntimeError(f"The {len(row_id)} scored rows are not the {len(row_ids['test'])} test rows: please report this.")
        write_predictions(trainer.run_folder, dataset, predictions)
        # Prompts are made before, and kept: what one took when it was made counts, whether this run made it or not.
        prompts = dataset.assembly.milliseconds_a_prompt if isinstance(dataset, ReLLaDataset) else 0.0
        measured["milliseconds_a_row"] = round(1000 * seconds["test"] / len(row_id) + prompts, 4)
        if scores.min() >= 0 and scores.max() <= 1:
            measured["test_exact"] = row_metrics(rows.label[row_id], scores, rows.user[row_id])
    if isinstance(dataset, ReLLaDataset):
        measured["shown"] = dataset.shown_statistics(np.unique(row_ids["test"]))
    return measured


def run_recbole_rella(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and test a model, as RecBole's ``run_recbole`` does (but for its count of FLOPs, which copies the model, and its table
    of what the machine does at the end, for which it waits a second).

    Args:
        model (str, optional): ReLLa, or the name of a built-in model; may stand in the configuration instead.
        dataset (str, optional): the data set's name; may stand in the configuration instead.
        config_file_list (list of str, optional): YAML files.
        config_dict (dict, optional): keys that override the files; the command line overrides both.
        saved (bool): whether to save the best model, and the run folder of ReLLa.

    Returns:
        dict: best_valid_score (float), valid_score_bigger (bool), best_valid_result and test_result (dict).

    Raises:
        ConfigError: keys of ours that do not exist or are out of range, before anything loads.
        ValueError: data, templates, encoders or LLMs that cannot be used.
    """
    config = make_config(model, dataset, config_file_list, config_dict)
    _init_logger(config)
    logger = getLogger()
    _to_file(sys.argv)
    _to_file(config)
    result, ending = _run(config, saved, verbose=True, rivals=True)
    logger.info(set_color("best valid ", "yellow") + f": {floats(result['best_valid_result'])}")
    logger.info(set_color("test result", "yellow") + f": {floats(result['test_result'])}")
    if ending:
        logger.info(beside.ending(**ending))
    return result


def _to_file(message):
    """What a screen has no room for, in the log file alone, where RecBole made one."""
    logger = getLogger()
    record = logger.makeRecord(logger.name, INFO, __file__, 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, FileHandler):
            handler.handle(record)


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    saved: bool = True,
    callback: Callable[[int, float], Any] | None = None,
) -> dict[str, Any]:
    """The objective function for RecBole's HyperTuning and for Ray.

    Args:
        config_dict (dict, optional): one setting of the searched keys.
        config_file_list (list of str, optional): the fixed ones.
        saved (bool): whether to save the best model of each trial.
        callback (callable, optional): called as (epoch, validation score) after every validated epoch.

    Returns:
        dict: model (str), and what `run_recbole_rella` returns.
    """
    config = make_config(config_dict=config_dict, config_file_list=config_file_list)
    _init_logger(config)
    result = {"model": config["model"], **_run(config, saved, verbose=False, callback=callback)[0]}
    if callback is None and "ray.tune" in sys.modules:
        from ray.air import session

        if session.get_trial_id():  # RecBole's objective function reports the test metrics to Ray, and its run_hyper.py reads them
            session.report(dict(result["test_result"]))
    return result


def _names(text):
    """Names separated by commas, or a list of them; none for None."""
    return [name.strip() for name in text.split(",") if name.strip()] if isinstance(text, str) else list(text or ())


def load_run_data(run_folder: AnyPath, allow_changed: str | Iterable[str] = (), engine: Mapping[str, Any] | None = None) -> tuple:
    """The data and the LLM of a run of ReLLa, compared with what the run stood on; its weights are not loaded yet.

    Args:
        run_folder (str or pathlib.Path): as a run of ReLLa left it.
        allow_changed (iterable of str, or str): what may differ from the run, see run_folder.IDENTITIES.
        engine (dict, optional): scoring_engine and vllm_args; transformers by default, whatever scored the run.

    Returns:
        tuple: Run, config, dataset, list of the data loaders of train, valid and test.

    Raises:
        RunError: the folder holds no run of ReLLa; RunChangedError: it is another data set, LLM, encoder, prompt or version.
    """
    run = read_run(run_folder)
    if not run.has_adapter:
        remedy = "RecBole's own load_data_and_model reads its model.pth"
        if run.model == "ReLLa":
            remedy = "finish it with --resume_from"
        elif is_ours(find_model(run.model)):
            remedy = "load_data_and_model loads it" if run.has_checkpoint else "run it again"
        raise RunError(
            f"run_folder: expected a finished run of ReLLa, found one of {run.model} without adapters in {run.folder}: {remedy}."
        )
    if run.metrics is None:
        raise RunError(
            f"run_folder: expected a finished run of ReLLa, found one that was interrupted in {run.folder}: finish it with "
            "--resume_from."
        )
    return run, *_data_of(run, allow_changed, {"scoring_engine": TRANSFORMERS, **(engine or {})})


def _data_of(run, allow_changed, changed=MappingProxyType({})):
    """The configuration, data set and data loaders of a run of ours, compared with what it stood on."""
    with no_command_line():
        config = make_config(run.model, run.dataset, config_dict={**run.settings(), **changed})
    dataset, loaders = load_data(config)
    assembly = dataset.assembly if is_rella(config.model_class) else dataset.behaviours
    run.check(identities_of(assembly), _names(allow_changed))
    return config, dataset, loaders


def load_data_and_model(run_folder: AnyPath, allow_changed: str | Iterable[str] = ()) -> tuple:
    """Restore a run from its folder; no pickled code is read, and nothing is logged or written beside it.

    Args:
        run_folder (str or pathlib.Path): as a run of ReLLa or SIM left it.
        allow_changed (iterable of str, or str): what may differ from the run: rows, llm, encoder, prompts, version.

    Returns:
        tuple: config, model (with the best adapter or weights, in evaluation mode), dataset, train_data, valid_data, test_data, as
        RecBole's function of this name.

    Raises:
        RunError: the folder holds no run of ours; RunChangedError: it is another data set, LLM, encoder, prompt or version.
    """
    run = read_run(run_folder)
    model_class = find_model(run.model)
    if run.has_checkpoint and is_ours(model_class) and not is_rella(model_class):
        config, dataset, loaders = _data_of(run, allow_changed)
        model = _make_model(config, loaders)
        model.load_state_dict(run.weights())
        return config, model.eval(), dataset, *loaders
    return load_rella(run_folder, allow_changed)


def load_rella(run_folder: AnyPath, allow_changed: str | Iterable[str] = (), engine: Mapping[str, Any] | None = None) -> tuple:
    """`load_data_and_model` of a run of ReLLa, and of no other model; engine as of `load_run_data`."""
    run, config, dataset, loaders = load_run_data(run_folder, allow_changed, engine)
    model = _make_model(config, loaders)
    model.load_adapter(run.folder / ADAPTER)
    return config, model.eval(), dataset, *loaders

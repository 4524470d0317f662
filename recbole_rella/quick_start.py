"""The wiring of a run, for ReLLa and for RecBole's built-in models alike.

RecBole's own quick_start imports ray; here nothing does.
"""

import sys
import time
from contextlib import contextmanager
from logging import getLogger

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_environment, get_model, get_trainer, init_logger, init_seed, set_color

from recbole_rella.run_folder import read_config, write_metrics, write_predictions


def _load(config):
    """Data loaders and model of a configuration, seeded as RecBole does it."""
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    getLogger().info(dataset)
    loaders = data_preparation(config, dataset)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    return dataset, loaders, model


def _run(config, saved, verbose):
    """Train and test; returns RecBole's result dictionary. A run folder of ReLLa is completed, if saved."""
    started = time.monotonic()
    logger = getLogger()
    dataset, loaders, model = _load(config)
    train_data, valid_data, test_data = loaders
    logger.info(model)
    prepared = time.monotonic()
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    show_progress = verbose and config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, verbose=verbose, saved=saved, show_progress=show_progress
    )
    tuned = time.monotonic()
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=show_progress)
    ended = time.monotonic()
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
    }
    if saved and hasattr(trainer, "run_folder"):
        seconds = {
            "preparation": prepared - started,
            "training": trainer.train_seconds,
            "training_and_validation": tuned - prepared,
            "test": ended - tuned,
            "total": ended - started,
        }
        rows = {name: len(loader._dataset) for name, loader in zip(("train", "valid", "test"), loaders)}
        if len(trainer.predictions["row_id"]):
            write_predictions(trainer.run_folder, dataset, trainer.predictions)
        write_metrics(trainer.run_folder, config, trainer, model, dataset, result, rows, seconds)
        logger.info(set_color("run folder", "yellow") + f": {trainer.run_folder}")
    return result


def run_recbole_rella(model=None, dataset=None, config_file_list=None, config_dict=None, saved=True):
    """Train and test a model, as RecBole's ``run_recbole`` does (but for its count of FLOPs, which copies the model).

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
    config = Config(model=model, dataset=dataset, config_file_list=config_file_list, config_dict=config_dict)
    init_logger(config)
    logger = getLogger()
    logger.info(sys.argv)
    logger.info(config)
    result = _run(config, saved, verbose=True)
    logger.info("The running environment of this training is as follows:\n" + get_environment(config).draw())
    logger.info(set_color("best valid ", "yellow") + f": {result['best_valid_result']}")
    logger.info(set_color("test result", "yellow") + f": {result['test_result']}")
    return result


def objective_function(config_dict=None, config_file_list=None, saved=True):
    """The objective function for RecBole's HyperTuning.

    Args:
        config_dict (dict, optional): one setting of the searched keys.
        config_file_list (list of str, optional): the fixed ones.
        saved (bool): whether to save the best model of each trial.

    Returns:
        dict: model (str), and what `run_recbole_rella` returns.
    """
    config = Config(config_dict=config_dict, config_file_list=config_file_list)
    init_logger(config)
    return {"model": config["model"], **_run(config, saved, verbose=False)}


@contextmanager
def _no_command_line():
    """RecBole's Config reads sys.argv; a finished run must be loaded as it was, whatever the caller's arguments."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def load_data_and_model(run_folder):
    """Restore a run from its folder; no pickled code is read.

    Args:
        run_folder (str or pathlib.Path): as a run of ReLLa left it.

    Returns:
        tuple: config, model (with the best adapter, in evaluation mode), dataset, train_data, valid_data, test_data, as
        RecBole's function of this name.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    name, dataset_name, path = read_config(run_folder)
    with _no_command_line():
        config = Config(model=name, dataset=dataset_name, config_file_list=[path])
    init_logger(config)
    dataset, loaders, model = _load(config)
    model.load_adapter(f"{run_folder}/adapter")
    model.eval()
    return config, model, dataset, *loaders

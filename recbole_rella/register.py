"""ReLLa where RecBole looks: its model, data set, trainer, transform and metrics by name, and its defaults in Config.

RecBole finds models as modules `recbole.model.<kind>.<name>`, data sets and trainers as attributes of a module. Each
name is added once, under our own name only; nothing that exists is replaced, but for three functions that pass everything
on unless the model is ReLLa or several processes run, and the Collector, which gathers one thing more where a metric of ours
asks for it.
"""

import importlib
import importlib.util
import sys

import recbole.data.dataset
import recbole.data.transform
import recbole.trainer

from recbole_rella import config, metrics, processes
from recbole_rella.config import is_rella
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.data.transform import PromptTransform
from recbole_rella.model.context_aware_recommender import rella
from recbole_rella.trainer import ReLLaTrainer


def _transform_by_model(builtin):
    def construct(recbole_config):
        is_ours = is_rella(recbole_config.model_class)
        return PromptTransform(recbole_config) if is_ours else builtin(recbole_config)

    return construct


class _NoTensorboard:
    """Takes what all but the first of several processes would write a second time."""

    def add_scalar(self, *_):
        """Nothing."""

    add_hparams = add_scalar


def _tensorboard_of_the_first(builtin):
    return lambda logger: builtin(logger) if processes.is_first() else _NoTensorboard()


def register():
    """Make RecBole find ReLLa. Calling it twice is harmless."""
    config.install()
    metrics.register()
    name = "recbole.model.context_aware_recommender.rella"
    if name in sys.modules:
        return
    sys.modules[name] = rella
    importlib.import_module("recbole.model.context_aware_recommender").ReLLa = rella.ReLLa
    recbole.data.dataset.ReLLaDataset = ReLLaDataset
    recbole.trainer.ReLLaTrainer = ReLLaTrainer
    recbole.trainer.trainer.get_tensorboard = _tensorboard_of_the_first(recbole.trainer.trainer.get_tensorboard)
    recbole.data.transform.UserDefinedTransform = _transform_by_model(recbole.data.transform.UserDefinedTransform)

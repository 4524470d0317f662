"""Our models where RecBole looks: model, data set, trainer, transform and metrics by name, and their defaults in Config.

RecBole finds models as modules `recbole.model.<kind>.<name>`, data sets and trainers as attributes of a module. Each
name is added once, under our own name only; nothing that exists is replaced, but for four functions that pass everything
on unless the model is ours or several processes run, and the Collector, which gathers one thing more where a metric of ours
asks for it.
"""

import importlib
import importlib.util
import sys

import recbole.data.dataset
import recbole.data.transform
import recbole.trainer
import recbole.utils

from recbole_rella import config, metrics, processes
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.data.same_rows import NumbersDataset
from recbole_rella.data.sim_dataset import SIMDataset
from recbole_rella.fitted_trainer import FittedAtOnceTrainer
from recbole_rella.model.context_aware_recommender import bias, rella, sim, tree
from recbole_rella.trainer import ReLLaTrainer

# Our models: their class, its module, its data set and its trainer (None: RecBole's).
_MODELS = (
    (rella.ReLLa, rella, ReLLaDataset, ReLLaTrainer),
    (sim.SIM, sim, SIMDataset, None),
    (bias.Bias, bias, NumbersDataset, FittedAtOnceTrainer),
    (tree.Tree, tree, NumbersDataset, FittedAtOnceTrainer),
)


def _transform_by_model(builtin):
    def construct(recbole_config):
        return getattr(recbole_config.model_class, "transform", builtin)(recbole_config)

    return construct


class _NoTensorboard:
    """Takes what all but the first of several processes would write a second time."""

    def add_scalar(self, *_):
        """Nothing."""

    add_hparams = add_scalar


def _tensorboard_of_the_first(builtin):
    return lambda logger: builtin(logger) if processes.is_first() else _NoTensorboard()


def _flops_but_of_llms(builtin):
    """RecBole's `run_recbole` counts operations on a copy of the model, and on a row of the whole data set, which has no prompt."""

    def get_flops(model, *arguments, **named):
        return float("nan") if isinstance(model, rella.ReLLa) else builtin(model, *arguments, **named)

    return get_flops


def register():
    """Make RecBole find our models. Calling it twice is harmless."""
    config.install()
    metrics.register()
    package = "recbole.model.context_aware_recommender"
    if f"{package}.rella" in sys.modules:
        return
    for model, module, dataset, trainer in _MODELS:
        name = model.__name__
        sys.modules[f"{package}.{name.lower()}"] = module
        setattr(importlib.import_module(package), name, model)
        setattr(recbole.data.dataset, f"{name}Dataset", dataset)
        if trainer is not None:
            setattr(recbole.trainer, f"{name}Trainer", trainer)
    recbole.trainer.trainer.get_tensorboard = _tensorboard_of_the_first(recbole.trainer.trainer.get_tensorboard)
    counted = _flops_but_of_llms(recbole.utils.get_flops)
    # quick_start, which imports ray, has its own name for it, if it was imported before.
    for place in (recbole.utils, recbole.utils.utils, sys.modules.get("recbole.quick_start.quick_start")):
        if place is not None:
            place.get_flops = counted
    recbole.data.transform.UserDefinedTransform = _transform_by_model(recbole.data.transform.UserDefinedTransform)

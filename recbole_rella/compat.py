"""What RecBole 1.2.1 needs to run beside today's numpy, scipy and torch.

Every shim names the release that made it necessary, or the one that made it needless, and does nothing where it is not needed.
``apply`` runs before RecBole is imported. tests/test_compat.py fails as soon as RecBole no longer needs one of them.
"""

import contextlib
import functools
import importlib.util
import sys
import types
import warnings

import numpy as np
import scipy.sparse
import torch

RECBOLE = "1.2.1"


def require_recbole():
    """On Python 3.12 and newer RecBole does not come with this package (see setup.cfg).

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec("recbole") is None:
        raise ImportError(f"Expected RecBole {RECBOLE}, found none: pip install --no-deps recbole=={RECBOLE}")


def without_future_warnings():
    """Calls of libraries among themselves that will change some day are nothing that a user of a command could do about."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(recbole|transformers|peft)\.")


def _numpy_aliases():
    """numpy 2.0 dropped these names; ``recbole.config.Config.compatibility_settings`` reads them."""
    for name, value in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        if not hasattr(np, name):
            setattr(np, name, value)


def _dok_matrix_update():
    """scipy 1.13 dropped ``dok_matrix._update``; RecBole's graph models (LightGCN, NGCF, ...) fill matrices with it."""
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        scipy.sparse.dok_matrix._update = lambda matrix, data: matrix._dict.update(data)


class _TorchThatLoadsConfigs(types.ModuleType):
    """The torch module, but for ``load``, which accepts the Config that RecBole's trainer pickles into its checkpoints."""

    def __init__(self):
        super().__init__("torch")
        self.load = functools.partial(torch.load, weights_only=False)

    def __getattr__(self, name):
        return getattr(torch, name)


def _trusted_checkpoints():
    """torch 2.6 made ``torch.load`` refuse pickled classes. Only RecBole's trainer module sees the other ``load``: it
    reads back the file that it wrote itself."""
    import recbole.trainer.trainer as trainer

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6):
        trainer.torch = _TorchThatLoadsConfigs()


def _loss_of_one_row():
    """Before numpy 2.4 ``np.float64`` makes a number of an array of one value, whose length RecBole's LogLoss asks for."""
    from recbole.evaluator.metrics import LogLoss

    mean_loss = LogLoss.metric_info
    if np.ndim(np.float64(np.zeros(1))) == 0 and not hasattr(mean_loss, "__wrapped__"):

        @functools.wraps(mean_loss)
        def metric_info(self, preds, trues):
            times = 2 if len(preds) == 1 else 1  # the mean over a row that stands there twice is its own
            return mean_loss(self, preds.repeat(times), trues.repeat(times))

        LogLoss.metric_info = metric_info


def apply():
    """Apply every shim that the installed libraries need. Calling it twice is harmless.

    Raises:
        ImportError: RecBole is not installed.
    """
    require_recbole()
    _numpy_aliases()
    _dok_matrix_update()
    _trusted_checkpoints()
    _loss_of_one_row()


@contextlib.contextmanager
def anomaly_detection_kept():
    """RecBole's SINE turns torch's anomaly detection on when its module is imported, and every sequential model imports it.

    From then on all training of the process is slower, and a loss of nan ends with torch's message, not RecBole's. What looks
    up a model does so within this context, which leaves the detection as the user had it.
    """
    detects, checks = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(detects, checks)


def _bool8():
    if not hasattr(np, "bool8"):
        np.bool8 = np.bool_


def ray_environment():
    """numpy 2.0 dropped ``bool8``, which ray 2.6 reads when its tuner is imported: here, and in each of its processes.

    Returns:
        dict: the runtime_env of ``ray.init``.
    """
    _bool8()
    import ray.cloudpickle

    # By value: by its name, every process of Ray's would import this package, and torch, before it is ready for work.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return {"worker_process_setup_hook": _bool8}

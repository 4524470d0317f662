"""Each shim is needed today. A test that fails here says that one can go."""

import inspect
import json
import subprocess
import sys
from importlib.metadata import version as version_of

import numpy as np
import pytest
import recbole.config.configurator
import recbole.model.general_recommender.lightgcn
import recbole.trainer.trainer
import scipy
import torch
from recbole.evaluator.metrics import LogLoss
from sklearn.metrics import log_loss

from recbole_rella import compat


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


# What only a process that has imported nothing can tell, first without this package and then with it.
FACTS = """
import importlib, json, sys
import numpy, scipy.sparse, torch
facts = {}
try:
    numpy.float_
except AttributeError as error:
    facts["numpy.float_"] = str(error)
facts["dok_matrix._update"] = hasattr(scipy.sparse.dok_matrix, "_update")
import recbole_rella, recbole_rella.trainer
facts["ray"] = "ray" in sys.modules
from recbole.utils import get_model
get_model("DIN")
facts["RecBole detects anomalies"] = torch.is_anomaly_enabled()
torch.autograd.set_detect_anomaly(False)
for name in [name for name in sys.modules if name.startswith("recbole.model.sequential_recommender.")]:
    del sys.modules[name]
from recbole_rella.experiments.plan import make_entries
from recbole_rella.quick_start import make_config
make_entries(["DIN"])
facts["after make_entries"] = torch.is_anomaly_enabled()
for name in [name for name in sys.modules if name.startswith("recbole.model.sequential_recommender.")]:
    del sys.modules[name]
make_config("DIEN", "ml-100k")
facts["after make_config"] = torch.is_anomaly_enabled()
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    done = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_numpy_aliases_are_still_read(facts):
    source = inspect.getsource(recbole.config.configurator.Config.compatibility_settings)
    assert all(f"np.{name}" in source for name in ("float_", "complex_", "unicode_"))
    if version(np.__version__) >= (2, 0):
        assert "np.float_" in facts["numpy.float_"]


def test_dok_matrix_update_is_still_called(facts):
    assert "A._update(data_dict)" in inspect.getsource(recbole.model.general_recommender.lightgcn)
    if version(scipy.__version__) >= (1, 13):
        assert not facts["dok_matrix._update"]
    matrix = scipy.sparse.dok_matrix((2, 3))
    matrix._update({(0, 1): 5.0, (1, 2): 7.0})
    assert matrix.toarray().tolist() == [[0, 5, 0], [0, 0, 7]]


def test_recboles_checkpoints_still_pickle_their_config(tmp_path):
    assert "weights_only" not in inspect.getsource(recbole.trainer.trainer)
    if version(torch.__version__) < (2, 6):
        pytest.skip("this torch loads pickled classes")
    file = tmp_path / "checkpoint.pth"
    torch.save({"config": compat._TorchThatLoadsConfigs}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file)
    # Only RecBole's trainer sees the other load, and everything else of torch as it is.
    assert recbole.trainer.trainer.torch.load(file)["config"] is compat._TorchThatLoadsConfigs
    assert recbole.trainer.trainer.torch.nn is torch.nn


@pytest.mark.parametrize("n", [1, 2, 5])
def test_logloss_of_few_rows(n):
    random = np.random.default_rng(n)
    preds, trues = random.random(n).astype(np.float32), (random.random(n) < 0.5).astype(np.float32)
    found = LogLoss({"metric_decimal_place": 4}).metric_info(preds, trues)
    assert found == pytest.approx(log_loss(trues, preds, labels=[0, 1]), abs=1e-6)


def test_nothing_imports_ray(facts):
    assert not facts["ray"]


def test_sequential_models_still_turn_anomaly_detection_on(facts):
    assert facts["RecBole detects anomalies"]
    assert not facts["after make_entries"] and not facts["after make_config"]


def test_applying_twice_changes_nothing():
    load = recbole.trainer.trainer.torch.load
    compat.apply()
    matrix = scipy.sparse.dok_matrix((1, 1))
    matrix._update({(0, 0): 1.0})
    assert matrix[0, 0] == 1 and recbole.trainer.trainer.torch.load.func is load.func


def test_where_recbole_is_not_installed_the_message_says_how(monkeypatch):
    """As on Python 3.12 and newer, where pip cannot install what it requires."""
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=f"pip install --no-deps recbole=={version_of('recbole')}"):
        compat.apply()

"""Each shim is needed today. A test that fails here says that one can go."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import recbole.config.configurator
import recbole.model.general_recommender.lightgcn
import recbole.trainer.trainer
import scipy
import torch

from recbole_rella import compat


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_numpy_aliases_are_still_read():
    source = inspect.getsource(recbole.config.configurator.Config.compatibility_settings)
    assert all(f"np.{name}" in source for name in ("float_", "complex_", "unicode_"))
    if version(np.__version__) >= (2, 0):
        plain = run("import numpy; numpy.float_")
        assert plain.returncode and "np.float_" in plain.stderr


def test_dok_matrix_update_is_still_called():
    assert "A._update(data_dict)" in inspect.getsource(recbole.model.general_recommender.lightgcn)
    if version(scipy.__version__) >= (1, 13):
        assert run("import scipy.sparse; scipy.sparse.dok_matrix._update").returncode
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


def test_nothing_imports_ray():
    result = run("import sys, recbole_rella, recbole_rella.trainer; sys.exit('ray' in sys.modules)")
    assert result.returncode == 0, result.stderr


def test_sequential_models_still_turn_anomaly_detection_on():
    look_up = "from recbole.utils import get_model; get_model('DIN')"
    seen = "import sys, torch; sys.exit(torch.is_anomaly_enabled())"
    assert run(f"import recbole_rella; {look_up}; {seen}").returncode == 1
    entries = "from recbole_rella.experiments.plan import make_entries; make_entries(['DIN'])"
    config = "from recbole_rella.quick_start import make_config; make_config('DIEN', 'ml-100k')"
    result = run(f"import recbole_rella, torch; {entries}; assert not torch.is_anomaly_enabled(); {config}; {seen}")
    assert result.returncode == 0, result.stderr


def test_applying_twice_changes_nothing():
    load = recbole.trainer.trainer.torch.load
    compat.apply()
    matrix = scipy.sparse.dok_matrix((1, 1))
    matrix._update({(0, 0): 1.0})
    assert matrix[0, 0] == 1 and recbole.trainer.trainer.torch.load.func is load.func

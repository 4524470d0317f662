"""recbole_rella: ReLLa, a large language model as a click-through-rate model, inside RecBole.

Importing the package is enough for RecBole to find ReLLa by name.
"""

from recbole_rella import compat

compat.apply()  # before anything imports RecBole

from recbole_rella.quick_start import load_data_and_model, objective_function, run_recbole_rella  # noqa: E402
from recbole_rella.register import register  # noqa: E402

register()

__all__ = ["load_data_and_model", "objective_function", "run_recbole_rella"]

"""recbole_rella: ReLLa, a large language model as a click-through-rate model, inside RecBole.

Importing the package is enough for RecBole to find ReLLa by name.
"""

from recbole_rella.arguments import asks_for_help, is_own_program

# The help of our own commands needs nothing of RecBole, whose import takes seconds.
if not (is_own_program() and asks_for_help()):
    from recbole_rella import compat

    compat.apply()  # before anything imports RecBole

    from recbole_rella.quick_start import load_data_and_model, objective_function, run_recbole_rella
    from recbole_rella.register import register

    register()

__all__ = ["load_data_and_model", "objective_function", "run_recbole_rella"]

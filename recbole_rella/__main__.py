"""Run a script of RecBole's, unchanged, with ReLLa in it: ``python -m recbole_rella run_hyper.py --params_file=...``.

The script finds ReLLa by name, and our objective function where it imports RecBole's.
"""

import runpy
import sys
from pathlib import Path

from recbole_rella import compat, objective_function


def main(arguments):
    """Run the script that the first argument names, as if it had been called with the others."""
    if not arguments or not Path(arguments[0]).is_file():
        sys.exit(f"{__doc__}\nExpected the path of a script, found {arguments[0] if arguments else 'none'}.")
    compat.ray_environment()
    import recbole.quick_start

    recbole.quick_start.objective_function = objective_function
    sys.argv = list(arguments)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

"""One run in a process of its own: ``python -m recbole_rella.experiments.child <settings.yaml>``.

A run that fails, or that the system kills for its memory, then takes nothing else with it.
"""

import os
import sys
import threading
import traceback
from pathlib import Path

from recbole_rella.compat import without_future_warnings
from recbole_rella.files import read_yaml, write_json
from recbole_rella.given import no_command_line
from recbole_rella.quick_start import run_recbole_rella
from recbole_rella.run_folder import RESUME

ERROR = "error.json"


def _end_with_parent():
    """The parent holds the other end of standard input; when it is gone, nobody waits for this run."""
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter needs at its end
        pass
    os._exit(3)


def main(path):
    """Run the settings in a file; an error is written beside it.

    Returns:
        int: 0, or 1 after an error.
    """
    without_future_warnings()
    folder = Path(read_yaml(path)["run_folder"])
    resumed = {"resume_from": str(folder), "run_folder": None} if (folder / RESUME).is_file() else None
    try:
        with no_command_line():
            run_recbole_rella(config_file_list=[path], config_dict=resumed)
    except BaseException as error:
        write_json(folder / ERROR, {"error": f"{type(error).__name__}: {error}"})
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(sys.argv[1]))

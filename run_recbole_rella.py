"""Run ReLLa, or any model of RecBole, on a data set.

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k [--config_files="a.yaml b.yaml"] [--key=value ...]
    python run_recbole_rella.py --resume_from=saved/<run folder>

Every other --key=value is a key of RecBole or of ReLLa and overrides the configuration files.
"""

import argparse
import sys
import warnings

from recbole_rella import run_recbole_rella
from recbole_rella.run_folder import read_config


def main(arguments=None):
    """Parse the arguments that name the run, and leave the others to RecBole's Config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "-m", help="name of the model (ReLLa)")
    parser.add_argument("--dataset", "-d", help="name of the data set (ml-100k)")
    parser.add_argument("--config_files", help="YAML files, separated by spaces")
    parser.add_argument("--resume_from", help="run folder of an interrupted run")
    known, _ = parser.parse_known_args(arguments)
    # RecBole's calls of pandas and torch that will change some day; nothing that a user could do about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    files = known.config_files.split() if known.config_files else []
    model, dataset = known.model, known.dataset
    if known.resume_from:
        saved_model, saved_dataset, path = read_config(known.resume_from)
        model, dataset, files = model or saved_model, dataset or saved_dataset, [path, *files]
    elif not files:
        model, dataset = model or "ReLLa", dataset or "ml-100k"
    run_recbole_rella(model=model, dataset=dataset, config_file_list=files or None)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        # Errors of configuration and data say what to do; a traceback would hide that. Everything else keeps its own.
        if type(error).__module__.split(".")[0] != "recbole_rella":
            raise
        sys.exit(f"{type(error).__name__}: {error}")

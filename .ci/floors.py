"""The lowest versions that setup.cfg allows, as constraints for pip: every `name>=version` becomes `name==version`."""

import configparser
import re
import sys
from pathlib import Path

# A CPU build of its lowest version is on no index that pip asks by itself: the plain one brings gigabytes of CUDA libraries.
HELD = {"torch"}


def floors(path):
    """The constraints, a line each, of what is installed for a run, for tests, for tuning and for servers.

    Args:
        path (pathlib.Path): setup.cfg.

    Returns:
        list of str: `name==version`.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(path, encoding="utf-8")
    extras = config["options.extras_require"]
    lines = "\n".join([config["options"]["install_requires"], extras["test"], extras["hyper"], extras["server"]]).splitlines()
    found = [re.match(r"([\w-]+)>=([\w.]+)", line) for line in lines]
    return [f"{match[1]}=={match[2]}" for match in found if match and match[1] not in HELD]


if __name__ == "__main__":
    print("\n".join(floors(Path(sys.argv[1]))))

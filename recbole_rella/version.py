"""The versions of this package and of what it stands on."""

from importlib.metadata import PackageNotFoundError, version


def installed(package):
    """The version of an installed package, or None: some come under another name (FAISS from conda, a GPU build)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Of this package, from which setup.cfg takes it: what is installed may be another checkout's.
VERSION = "0.11.0"

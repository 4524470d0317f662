"""The version of this package, which identifies what it made."""

from importlib import metadata


def version():
    """The installed version, or ``unknown`` in a checkout that was never installed."""
    try:
        return metadata.version("recbole-rella")
    except metadata.PackageNotFoundError:
        return "unknown"

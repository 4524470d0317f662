"""A bar for what takes longer than a few seconds."""

from tqdm import tqdm

_PATIENCE = 3


def bar(total, what, show_progress):
    """A tqdm bar over rows or items that shows after a few seconds, and goes when all is done.

    Args:
        total (int): how many there are; `update(n)` says how many more are done.
        what (str): is done.
        show_progress (bool): whether to show it at all.

    Returns:
        tqdm.tqdm: a context manager.
    """
    return tqdm(total=total, desc=what, delay=_PATIENCE, leave=False, disable=not show_progress, ncols=100)

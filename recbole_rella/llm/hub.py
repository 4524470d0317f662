"""Which version of a model of the Hugging Face hub is meant: a branch or a tag moves, a commit does not."""

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash


def commit_of(name, revision=None, files=("config.json",)):
    """The commit that a name on the hub stands for now.

    Args:
        name (str): of a model on the hub.
        revision (str, optional): branch, tag or commit; the main branch by default.
        files (tuple of str): files of the model, by the first of which that is there the commit is found.

    Returns:
        str or None: 40 hexadecimal digits, or None where the files come from a place that keeps no commits.
    """
    for file in files:
        try:
            found = cached_file(name, file, revision=revision)
        except (OSError, ValueError):  # the model, the file or the hub is out of reach: who loads it says so
            continue
        return extract_commit_hash(found, None)
    return None

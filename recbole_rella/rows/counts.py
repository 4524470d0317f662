"""What a data set is published to hold, compared with what was found. Plain Python."""

# By how many rows a part of the split may differ: RecBole rounds each part but the first down, others round elsewhere.
_ROUNDING = 2


def differing(expected, found):
    """The counts that differ.

    Args:
        expected (dict): name -> int, some of keys.COUNTS.
        found (dict): name -> int, or None where the run cannot know.

    Returns:
        dict: name -> (expected, found), in the order of `expected`.
    """
    tolerance = dict.fromkeys(("train", "valid", "test"), _ROUNDING)
    return {
        name: (count, found[name])
        for name, count in expected.items()
        if found[name] is not None and abs(count - found[name]) > tolerance.get(name, 0)
    }


def sentence(differences, of_the_user):
    """The differences in words.

    Args:
        differences (dict): of `differing`, not empty.
        of_the_user (list of str): settings by which the user changed what is counted.

    Returns:
        str: for a warning.
    """
    counts = ", ".join(f"{name} {expected} (found {found})" for name, (expected, found) in differences.items())
    reason = (
        f"Your own {', '.join(of_the_user)} may be why."
        if of_the_user
        else "Results on these files are not comparable with published ones: is this the complete, original data set?"
    )
    return f"expected_counts: expected {counts}. {reason} expected_counts={{}} turns this off."

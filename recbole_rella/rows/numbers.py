"""Numbers as words: with the digits that the file has, not rounded to six."""


def number_words(value):
    """The shortest decimal text that reads back as the same number; no exponent from 1e-6 to 1e16, no .0 at the end.

    Args:
        value (float): read from a file as float64; not missing.

    Returns:
        str: 1234567, 0.1, -3.25, 1e+300, inf.
    """
    text = repr(float(value))
    if "e-" in text and abs(value) >= 1e-6:
        text = f"{value:.{len(text.split('e')[0].replace('.', '').lstrip('-')) + int(text.split('e-')[1]) - 1}f}"
    return text.removesuffix(".0")

"""The base of all errors that are about what a user gave: a configuration, data, an LLM, a request.

Their message says what was expected, what was found, and what to do. The command prints it alone, without a traceback.
"""


class RellaError(ValueError):
    """Something that was given cannot be used; the message says what, and what to do."""

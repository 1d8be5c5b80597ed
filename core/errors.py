"""The one error family of the package."""


class GroundingError(ValueError):
    """Input that cannot be grounded; the message says what was wrong, the values seen, and what to do next.

    >>> from core import GroundOptions
    >>> GroundOptions(normalization="mean")
    Traceback (most recent call last):
    core.errors.GroundingError: normalization 'mean' is not known; choose one of sequence, none, words, ratio, prompt
    """

"""The one error family of the package."""


class GroundingError(ValueError):
    """Input that cannot be grounded; the message says what was wrong, the values seen, and what to do next."""

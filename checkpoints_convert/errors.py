"""The one error of this package."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or is not supported: one line with the values and, where known, a way out."""

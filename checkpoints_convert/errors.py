"""Defines the one error of this package."""

LONGEST = 1000  # characters of a message: a file may put a megabyte into a name


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or is not supported: one line with the values and, where known, a way out.

    Files are input: what they put into a message (names, texts) is shown in one line, without control characters, and
    cut in the middle where it is long.
    """

    def __init__(self, message: str) -> None:
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 7 // 10]} [...] {text[-LONGEST * 2 // 10 :]}"
        super().__init__(text)


def is_failure(error: BaseException) -> bool:
    """Says whether a library failed: a panic of its Rust code counts, although it is no Exception; an interrupt does not."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"

"""Bytes as tokens spell them, and what of a growing text may be shown, written simply."""

NOT_WHOLE = "\ufffd"
PLAIN_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's: the others are moved behind 255
SYMBOL = {byte: chr(byte) for byte in PLAIN_BYTES} | {
    byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(PLAIN_BYTES)))
}


def first_stop(text, stop):
    return min((text.find(one) for one in stop if one in text), default=None)


def showable(text, stop):
    """Gives all of a text but an end that may become a stop string."""
    return next((text[:start] for start in range(len(text)) if any(one.startswith(text[start:]) for one in stop)), text)

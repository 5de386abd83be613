"""Text as it grows, whatever bytes the tokens are and whenever it is shown: its pieces are the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.generation.texts import NOT_WHOLE, SYMBOL, first_stop, showable
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jax_probe_mtp.generation.text_stream import TextStream

SPECIAL = b""  # no text of its own
CHARACTERS = "aab é“海🙂" + NOT_WHOLE
parts_of_text = st.builds(
    lambda text, first, last: text.encode()[first:last],
    st.text(CHARACTERS, max_size=3),
    st.integers(0, 3),
    st.integers(1, 12),
)
vocabularies = st.lists(parts_of_text | st.binary(max_size=3), min_size=1, max_size=10, unique=True)


def tokenizer_of(vocabulary):
    """Byte-level, as GPT-2, Llama 3 and Qwen have it, with these bytes for tokens."""
    names = ["".join(SYMBOL[byte] for byte in token) or "</s>" for token in vocabulary]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "</s>"} if SPECIAL in vocabulary else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@st.composite
def stops_in(draw, text):
    """Up to three stop strings, most of them parts of the text: they are met, overlap, begin and do not end."""
    place = st.integers(0, max(0, len(text) - 1))
    parts = st.builds(lambda first, length: text[first : first + length], place, st.integers(1, 4))
    found = draw(st.lists(parts | st.text(CHARACTERS, max_size=3), max_size=3))
    return [each for each in (stop.replace(NOT_WHOLE, draw(st.sampled_from(["", "a"]))) for stop in found) if each]


@settings(max_examples=600, derandomize=True, deadline=None)
@given(st.data(), vocabularies)
def test_the_pieces_are_the_whole_text_up_to_the_first_stop_string(data, vocabulary):
    token = st.integers(0, len(vocabulary) - 1)
    steps = data.draw(st.lists(st.tuples(token, st.booleans()), min_size=1, max_size=14), "token, is it shown then")
    stop = data.draw(stops_in(b"".join(vocabulary[token] for token, _ in steps).decode(errors="replace")), "stop")
    stream, raw, pieces, place = TextStream(tokenizer_of(vocabulary), stop), b"", [], None
    for token, is_shown in steps:
        raw += vocabulary[token]
        sure = raw.decode(errors="replace").rstrip(NOT_WHOLE)  # what is behind it may be a part of a character
        place = first_stop(sure, stop)
        assert stream.add(token) == stream.is_stopped == (place is not None)
        if is_shown:
            pieces.append(stream.show())
            assert "".join(pieces).startswith(sure[:place] if stream.is_stopped else showable(sure, stop))
        if stream.is_stopped:
            break
    whole = raw.decode(errors="replace")
    pieces.append(stream.finish(whole))
    assert "".join(pieces) == stream.text == whole[:place]

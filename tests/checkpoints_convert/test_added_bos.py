"""BOS and EOS around plain text mean the same in a Hugging Face folder and in the GGUF file that is made of it."""

import json

import gguf
import pytest
from support.checkpoints.gguf_tokenizers import build, fields_of, trained
from tokenizers import processors

from checkpoints_convert import CheckpointError
from checkpoints_convert.huggingface.tokenizer import load_hf_tokenizer
from jax_probe_mtp.generation.tokenizer import encode

TEXT = "the boats"
WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
WITHOUT_BOS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
BYTES = processors.ByteLevel(trim_offsets=False)


def template(single, original):
    ids = [(token, original.token_to_id(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=ids)


def hf_tokenizer(folder, post=None, settings=(), chat_template=None):
    """Loads a folder whose tokenizer.json adds what `post` makes of it, and whose tokenizer_config.json says `settings`."""
    original = trained("gpt-2")
    if post is not None:
        original.post_processor = post(original)
    original.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": chat_template} | dict(settings)
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_hf_tokenizer(folder)


def gguf_tokenizer(pre, settings=(), chat_template=None):
    said = {f"ggml.{key}": value for key, value in dict(settings).items()}
    return build(fields_of(trained("gpt-2"), pre, chat_template=chat_template, **said))


ADDS_NONE = [None, lambda original: BYTES, lambda original: template("$A", original)]
ADDS_BOS = [
    lambda original: template("<s> $A", original),
    lambda original: processors.Sequence([BYTES, template("<s> $A", original)]),  # as Llama 3's
]
# What the file says, and whether BOS is added then: where the tokenizer.json (`tokenizer.ggml.pre` of a GGUF file) adds none,
# and where it adds one.
CASES = [(None, False, True), (False, False, False), (True, True, True)]


def check(tokenizer, has_bos, chat_template):
    """Compares plain text, and a conversation, whose BOS is the template's alone."""
    bos, bare = tokenizer.bos_token_id, tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert bos not in bare
    assert encode(tokenizer, TEXT, use_chat_template=False) == [bos] * has_bos + bare
    assert encode(tokenizer, TEXT, use_chat_template=True) == [bos] * (chat_template == WITH_BOS) + bare


@pytest.mark.parametrize("chat_template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize(("says", "where_none", "where_one"), CASES)
def test_add_bos_token_of_a_folder(tmp_path, says, where_none, where_one, chat_template):
    for posts, has_bos in ((ADDS_NONE, where_none), (ADDS_BOS, where_one)):
        for post in posts:
            loaded = hf_tokenizer(tmp_path, post, {"add_bos_token": says}, chat_template)
            check(loaded, has_bos, chat_template)
            loaded.save_pretrained(tmp_path / "ours")
            check(load_hf_tokenizer(tmp_path / "ours"), has_bos, chat_template)


@pytest.mark.parametrize("chat_template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize(("says", "where_none", "where_one"), CASES)
def test_add_bos_token_of_a_gguf_file(tmp_path, says, where_none, where_one, chat_template):
    pres = {"gpt-2": where_none, "deepseek-llm": where_none, "default": where_none, "llama-bpe": where_one}
    for pre, has_bos in pres.items():
        loaded = gguf_tokenizer(pre, {"add_bos_token": says}, chat_template)
        check(loaded, has_bos, chat_template)
        loaded.save_pretrained(tmp_path / pre)
        check(load_hf_tokenizer(tmp_path / pre), has_bos, chat_template)


@pytest.mark.parametrize("eos", [None, False, True])
@pytest.mark.parametrize("bos", [None, False, True])
@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_a_gguf_file_of_llama_cpp_s_converter_encodes_as_the_folder(tmp_path, single, bos, eos):
    """The gguf package reads what a folder says as llama.cpp's converter does."""
    told = {"add_bos_token": bos, "add_eos_token": eos}
    folder = hf_tokenizer(tmp_path, lambda original: template(single, original), told)
    written = gguf.SpecialVocab(tmp_path).add_special_token
    file = gguf_tokenizer("gpt-2", {f"add_{name}_token": is_added for name, is_added in written.items()})
    assert folder(TEXT)["input_ids"] == file(TEXT)["input_ids"]


def test_other_tokens_around_a_text_stay(tmp_path):
    post = lambda original: template("<s> </s> $A <s> </s>", original)  # noqa: E731
    bare = hf_tokenizer(tmp_path, post, {"add_bos_token": False, "add_eos_token": False})
    assert bare.convert_ids_to_tokens(bare("a")["input_ids"]) == ["</s>", "a", "<s>"]
    same = hf_tokenizer(tmp_path, post, {"add_bos_token": True, "add_eos_token": True})
    assert same.convert_ids_to_tokens(same("a")["input_ids"]) == ["<s>", "</s>", "a", "<s>", "</s>"]


def test_a_tokenizer_json_that_cuts_short_and_fills_up_stays_as_it_is(tmp_path):
    def post(original):
        original.enable_truncation(1)
        original.enable_padding(length=4, pad_token="</s>", pad_id=original.token_to_id("</s>"))
        return template("<s> $A", original)

    kept = hf_tokenizer(tmp_path, post).backend_tokenizer.to_str()
    assert hf_tokenizer(tmp_path, post, {"add_bos_token": True}).backend_tokenizer.to_str() == kept
    bare = hf_tokenizer(tmp_path, post, {"add_bos_token": False, "add_eos_token": True})
    assert bare.convert_ids_to_tokens(bare("ab")["input_ids"]) == ["a", "b", "</s>"]


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_that_has_no_name_cannot_be_added(tmp_path, name):
    settings = {f"add_{name}_token": True, f"{name}_token": None}
    says = f"add_{name}_token is true, but there is no {name}_token; name one there, or set it to false"
    with pytest.raises(CheckpointError, match=says):
        hf_tokenizer(tmp_path, settings=settings)
    assert hf_tokenizer(tmp_path, settings=settings | {f"add_{name}_token": False})("a")["input_ids"]
    with pytest.raises(CheckpointError, match="'add_bos_token' must be true or false, got 'yes'"):
        hf_tokenizer(tmp_path, settings={"add_bos_token": "yes"})

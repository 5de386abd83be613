"""Loads the tokenizer of a Hugging Face folder."""

from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError, is_failure
from checkpoints_convert.mapping.fields import Fields, read_json
from checkpoints_convert.mapping.surroundings import read_surroundings, set_surroundings
from checkpoints_convert.mapping.tokenizer_class import tokenizer_class
from jax_probe_mtp.errors import one_line

_MAX_BYTES, _MAX_VALUES = 16 << 20, 1 << 19  # of 30,000 added tokens: 5 MB, 200,000 values


def load_hf_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer in a folder, ours or Hugging Face's; its own code is never run.

    Plain encoding adds BOS and EOS as tokenizer.json does, unless tokenizer_config.json says otherwise (`add_bos_token`,
    `add_eos_token`).

    Raises:
      CheckpointError: if there is no tokenizer.json, transformers cannot load it, or a token is to be added that has no name.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; make one with transformers' AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...) and put it beside the weights."
        )
    path = folder / "tokenizer_config.json"
    settings = read_json(path, most_bytes=_MAX_BYTES, most_values=_MAX_VALUES) if path.exists() else {}
    if settings.get("fast_tokenizer_files"):
        # transformers would read the one for its version, wherever its name leads to.
        raise CheckpointError(f"{path} names other files under 'fast_tokenizer_files'; remove that entry.")
    try:
        # Not AutoTokenizer: the classes it chooses rebuild parts of the tokenizer, in some versions not as tokenizer.json
        # has them, and that file alone says all but what is added around a text.
        tokenizer = tokenizer_class().from_pretrained(str(folder), local_files_only=True)
        _add_as_told(tokenizer, Fields(settings, str(path)))
    except BaseException as error:  # tokenizers raises plain Exception, transformers many kinds
        if isinstance(error, CheckpointError) or not is_failure(error):
            raise
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)[:300]}).") from None
    return tokenizer


def _add_as_told(tokenizer: Any, settings: Fields) -> None:
    """Adds or leaves out BOS and EOS as tokenizer_config.json says.

    transformers 5 does not read it beside a tokenizer.json. The Llama class of version 4 did, and llama.cpp's converter does:
    its GGUF files keep it as `tokenizer.ggml.add_bos_token`. DeepSeek's folders ask for BOS there alone.
    """
    told = {name: settings.flag(f"add_{name}_token", None) for name in ("bos", "eos")}
    if set(told.values()) == {None}:
        return
    tokens = {name: getattr(tokenizer, f"{name}_token") for name in told}
    for name, is_added in told.items():
        if is_added and tokens[name] is None:
            raise CheckpointError(
                f"{settings.where}: add_{name}_token is true, but there is no {name}_token; name one there, or set it to false."
            )
    before, after = found = read_surroundings(tokenizer.backend_tokenizer)
    before = _told(before, tokens["bos"], told["bos"])
    after = _told(after[::-1], tokens["eos"], told["eos"])[::-1]  # EOS is the last, where BOS is the first
    if (before, after) != found:
        set_surroundings(tokenizer.backend_tokenizer, before, after)


def _told(added: list[str], token: str | None, is_added: bool | None) -> list[str]:
    """Gives the tokens of one side, from the outermost, with `token` put there or taken away."""
    if is_added is None or token is None or is_added == (added[:1] == [token]):
        return added
    return [token, *added] if is_added else added[1:]

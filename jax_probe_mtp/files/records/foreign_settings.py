"""Settings that records of other programs have and this one does not: what would change an answer is refused by name.

The names are those of OpenAI, vLLM, TGI, transformers, llama.cpp and lm-eval. Fields that cannot change an answer, such as
`user`, `stream` or `model`, are not listed: they stay unread.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax_probe_mtp.files.json_lines import excerpt


def refuse_foreign(where: str, fields: Mapping[str, Any]) -> None:
    """Refuses a record with a setting that would change its answer, and that nothing here reads.

    Args:
      where: the record's name for messages.
      fields: its JSON object, of which the fields that are read were checked.

    Raises:
      ValueError: names the field, its value and the field to give in its place, where there is one.
    """
    for name, value in fields.items():
        if changes_nothing(name, value):
            continue
        instead, _ = _SETTINGS[name]
        if (instead and fields.get(instead) == value) or (name == "best_of" and value == fields.get("n")):
            continue
        if name == DO_SAMPLE and isinstance(value, bool):
            if value is bool(fields.get("temperature")):
                continue
            instead = "a temperature above 0" if value else "temperature 0"
        way_out = f"give {instead} instead" if instead else "leave it out"
        says = "contradicts the temperature" if name == DO_SAMPLE else "would change the answer and is not read"
        raise ValueError(f"{where}: {name} {excerpt(value)} {says}; {way_out}.")


def changes_nothing(name: str, value: object) -> bool:
    """Says whether a setting, by its name in another program, has a value with which it does nothing there.

    Null and what is empty do nothing, and so does a name that is not listed.
    """
    if name not in _SETTINGS or value is None:
        return True
    if isinstance(value, str | list | dict) and not value:
        return True
    return _SETTINGS[name][1](value)


_Test = Callable[[Any], bool]


def _is(*values: Any) -> _Test:
    """Compares with some values; true is not 1."""
    return lambda value: any(isinstance(value, bool) is isinstance(one, bool) and value == one for one in values)


def _is_no_object(value: Any) -> bool:
    return not isinstance(value, dict)


def _is_at_most_0(value: Any) -> bool:
    return isinstance(value, int | float) and value <= 0


def _never(value: Any) -> bool:
    return False


def _rows(*names: str, nothing: _Test = _never, instead: str | None = None) -> dict[str, tuple[str | None, _Test]]:
    return dict.fromkeys(names, (instead, nothing))


DO_SAMPLE = "do_sample"
_FIELDS = "what it holds as fields of the record"
_SYSTEM = 'messages that begin with one of the role "system"'
# name -> what to give in its place, and whether a value does nothing
_SETTINGS: dict[str, tuple[str | None, _Test]] = {
    # what is here under another name
    **_rows("max_tokens", "max_completion_tokens", "max_output_tokens", "max_length", instead="max_new_tokens"),
    **_rows("max_tokens_to_sample", "max_gen_toks", "max_gen_len", instead="max_new_tokens"),
    **_rows("n_predict", "num_predict", instead="max_new_tokens"),
    **_rows("stop_sequences", "stop_strings", "stop_words", "until", instead="stop"),
    **_rows("temp", instead="temperature"),
    **_rows("random_seed", "sampling_seed", instead="seed"),
    **_rows("system", "system_prompt", instead=_SYSTEM),
    **_rows("sampling_params", "generation_config", "generation_kwargs", "gen_kwargs", "extra_body", instead=_FIELDS),
    # columns of data sets have these names as well, with texts or lists
    **_rows("parameters", "options", nothing=_is_no_object, instead=_FIELDS),
    **_rows("reasoning", "thinking", nothing=_is_no_object),
    # how many answers, and which of them
    **_rows("num_return_sequences", nothing=_is(1), instead="n"),
    **_rows("best_of", "num_beams", "beam_width", "length_penalty", nothing=_is(1)),
    **_rows("num_beam_groups", nothing=_is(0, 1)),
    **_rows("diversity_penalty", nothing=_is(0)),
    **_rows("use_beam_search", nothing=_is(False)),
    # where they end
    **_rows("min_new_tokens", nothing=_is(0), instead="min_tokens"),
    **_rows("min_length", nothing=_is(0)),
    **_rows("eos_token_id", "forced_eos_token_id", "max_time", "exponential_decay_length_penalty"),
    # which tokens are favoured
    **_rows("repeat_penalty", nothing=_is(1), instead="repetition_penalty"),
    **_rows("encoder_repetition_penalty", "guidance_scale", nothing=_is(1)),
    **_rows("dry_multiplier", "no_repeat_ngram_size", "penalty_alpha", nothing=_is(0)),
    **_rows("sequence_bias", "bad_words", "bad_words_ids", "force_words_ids", "forced_bos_token_id"),
    **_rows("suppress_tokens", "begin_suppress_tokens", "allowed_token_ids", "logits_processors"),
    **_rows("watermark", nothing=_is(False)),
    # how they are drawn
    **_rows(DO_SAMPLE, "samplers"),
    **_rows("typical_p", "tfs_z", nothing=_is(1)),
    **_rows("min_p", "top_a", "epsilon_cutoff", "eta_cutoff", nothing=_is(0)),
    **_rows("mirostat", "dynatemp_range", "xtc_probability", nothing=_is(0)),
    **_rows("top_n_sigma", nothing=_is_at_most_0),
    # what form they have
    **_rows("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding"),
    **_rows("structured_outputs", "grammar", "json_schema", "ebnf"),
    **_rows("response_format", nothing=_is({"type": "text"})),
    # what the prompt becomes
    **_rows("functions", instead="tools"),
    **_rows("chat_template_kwargs", instead="template_kwargs"),
    **_rows("enable_thinking", "reasoning_effort", instead="it in template_kwargs"),
    **_rows("chat_template", "suffix", "images", "multi_modal_data"),
    **_rows("truncate", "truncate_prompt_tokens", "add_special_tokens"),
    **_rows("tool_choice", "function_call", nothing=_is("none", "auto")),
    **_rows("add_generation_prompt", nothing=_is(True)),
    **_rows("truncation", nothing=_is(False, "disabled")),
    # what the text shows
    **_rows("echo", "return_full_text", "include_stop_str_in_output", nothing=_is(False)),
    **_rows("skip_special_tokens", nothing=_is(True)),
    # other weights
    **_rows("lora", "lora_request", "adapter_id"),
}

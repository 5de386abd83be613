"""How a model asks to be decoded: applied where the user says so, else told where a run decodes otherwise."""

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jax_probe_mtp.decoding.settings import LARGEST_PENALTY, LARGEST_REPETITION, LARGEST_TEMPERATURE, Settings
from jax_probe_mtp.files.json_lines import excerpt
from jax_probe_mtp.files.records.foreign_settings import DO_SAMPLE, changes_nothing

_OF_SAMPLING = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "mirostat", "xtc_probability")
_OF_BEAMS = ("length_penalty", "diversity_penalty", "num_beam_groups")
_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
_OURS = {  # transformers' name -> that of `Settings`
    **{name: name for name in (*_GREEDY, "repetition_penalty", "presence_penalty", "frequency_penalty")},
    "min_new_tokens": "min_tokens",
}
_TAKES: dict[str, Callable[[Any], bool]] = {  # transformers' name -> whether we take a number
    "temperature": lambda value: 0 <= value <= LARGEST_TEMPERATURE,
    "top_k": lambda value: isinstance(value, int) and value >= 0,
    "top_p": lambda value: 0 < value <= 1,
    "repetition_penalty": lambda value: 1 / LARGEST_REPETITION <= value <= LARGEST_REPETITION,
    "presence_penalty": lambda value: abs(value) <= LARGEST_PENALTY,
    "frequency_penalty": lambda value: abs(value) <= LARGEST_PENALTY,
    "min_new_tokens": lambda value: isinstance(value, int) and value >= 0,
}


def with_defaults(defaults: Mapping[str, Any], settings: Settings, given: Collection[str]) -> Settings:
    """Gives the settings of a run with a model's own in place of those that the user left out; values that are not taken stay.

    Args:
      defaults: `Checkpoint.generation_defaults`.
      settings: of the run.
      given: names of settings that the user gave.
    """
    asked = _asked(defaults)
    own = {ours: asked[name] for name, ours in _OURS.items() if ours not in given and _is_taken(name, asked.get(name))}
    if own.get("min_tokens", 0) > settings.max_new_tokens:
        del own["min_tokens"]
    return dataclasses.replace(settings, **own)


def _is_taken(name: str, value: object) -> bool:
    return _is_number(value) and _TAKES[name](value)


def not_applied(defaults: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Gives those of a model's defaults that a run does not decode with.

    Args:
      defaults: `Checkpoint.generation_defaults`. A temperature asks for sampling, but where `do_sample` is false; then, as
        without either, nothing of sampling counts.
      settings: of the run.
    """
    asked, run = _asked(defaults), {name: getattr(settings, ours) for name, ours in _OURS.items()}
    do_sample = asked.pop(DO_SAMPLE, None)
    is_drawn = settings.temperature > 0
    if not is_drawn:
        run |= _GREEDY
    found = {DO_SAMPLE: do_sample} if isinstance(do_sample, bool) and do_sample is not is_drawn else {}
    for name, value in asked.items():
        if value != run[name] if name in run else not changes_nothing(name, value):
            found[name] = value
    return found


def _asked(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Gives those of a model's defaults that count, with the temperature that transformers takes where none is named."""
    asked = dict(defaults)
    do_sample = asked.get(DO_SAMPLE)
    if do_sample is True:
        asked.setdefault("temperature", 1.0)
    if do_sample is False or not _is_above(asked.get("temperature"), 0):
        for name in (*_GREEDY, *_OF_SAMPLING):
            asked.pop(name, None)
    if not _is_above(asked.get("num_beams"), 1):
        for name in _OF_BEAMS:
            asked.pop(name, None)
    return asked


def say_not_applied(model: str, found: Mapping[str, Any]) -> str:
    """Says in one line what of a model's defaults is `not_applied`, and which flags would apply it."""
    flags = _flags(found)
    rest = [name for name in found if name not in (*flags, DO_SAMPLE)]
    says = f"{model}: its own defaults are not applied: {_named(found)}"
    if not flags:
        return says
    return f"{says}; {' '.join(flags.values())} would apply {'all but ' + ', '.join(rest) if rest else 'them'}"


def say_may_be_why(model: str, found: Mapping[str, Any]) -> str:
    """Says in one line that outputs may differ since another program applied what is `not_applied` here."""
    return f"{model}: its own defaults, which other programs apply and this check does not, may be why: {_named(found)}"


def _named(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {excerpt(value)}" for name, value in found.items())


def _flags(found: Mapping[str, Any]) -> dict[str, str]:
    """Gives the flag that would apply each value, as far as there is one and it takes the value."""
    flags = {
        name: f"--{_OURS[name].replace('_', '-')} {found[name]}" for name in _TAKES if _is_taken(name, found.get(name))
    }
    return {DO_SAMPLE: "--temperature 0"} | flags if found.get(DO_SAMPLE) is False else flags


def _is_above(value: Any, least: float) -> bool:
    return _is_number(value) and value > least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that applies a model's defaults."""
    parser.add_argument(
        "--use-generation-config",
        action="store_true",
        help="take sampling and penalties from the model's generation_config.json where no flag names them "
        "(default: they are told, not applied)",
    )


def settings_of(args: argparse.Namespace, defaults: Mapping[str, Any], settings: Settings) -> Settings:
    """Gives the settings of a command, with a model's defaults where the flag of `add_flag` is there."""
    if not args.use_generation_config:
        return settings
    return with_defaults(defaults, settings, [name for name in _OURS.values() if getattr(args, name) is not None])

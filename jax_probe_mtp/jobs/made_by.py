"""What decides the answers of a job, as it is kept beside them."""

from typing import Any

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.mask_tokens import EARLIER_INIT
from jax_probe_mtp.drafting.spec import renewed_name
from jax_probe_mtp.files.run_file import FORMAT, Begun
from jax_probe_mtp.generation.groups import program_of
from jax_probe_mtp.generation.one_text import device_kind, has_one_text
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import identity, model_identity

_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "logprobs")
_SINCE = ("top_logprobs", "prompt_logprobs")
_OF_TEMPLATE = ("continue_final_message", "system", "template_kwargs")
_ORDER = 3  # of the exact mode's sums: answers of a version with another order are others
ONE_TEXT = "one text"  # whatever drafts it
_OF_PROGRAM = ("capacity", "calls_per_chunk")


def made_by(
    checkpoint: Checkpoint,
    settings: Settings,
    begun: Begun,
    encode: Encoder,
    *,
    draft: str,
    masks: str | None = None,
) -> dict[str, Any]:
    """Describes a job: another value of anything here may give other answers.

    Args:
      checkpoint: the model.
      settings: what records have no own value for.
      begun: how the job began; one of an earlier version says what that said.
      encode: turns records into tokens.
      draft: the way of drafting, by `spec.draft_name`.
      masks: digest of tuned masks; None where there are none.
    """
    numbers = {"dtype": checkpoint.number_format}
    if begun.is_by_line:
        run: dict[str, Any] = {"model": model_identity(checkpoint) | numbers}
    else:
        run = {"format": FORMAT, "started": begun.at.isoformat(), "model": identity(checkpoint) | numbers}
    is_one_text = settings.is_exact and has_one_text(checkpoint)
    run["settings"] = {
        **({} if is_one_text else {"draft": draft}),
        **({"masks": masks} if masks and not is_one_text else {}),
        "chat_template": encode.use_chat_template,
        # Left out where they were not given: earlier versions had none.
        **{name: value for name in _OF_TEMPLATE if (value := getattr(encode, name)) not in (None, False)},
        **{name: getattr(settings, name) for name in _SETTINGS},
        # nor had they these
        **{name: value for name in _SINCE if (value := getattr(settings, name))},
        **settings.penalties,
        "stop": list(settings.stop),
        "exact": ONE_TEXT if is_one_text else settings.is_exact,
    }
    mesh, num_programs = program_of(checkpoint.params)
    if is_one_text:  # of all programs on one kind of device; devices that share weights cut sums into parts
        run["program"] = {"mesh": mesh, "device": device_kind(checkpoint), "order": _ORDER}
    elif settings.is_exact:  # then answers are those of one compiled program
        run["program"] = {"batch_size": settings.batch_size // num_programs}  # its rows
        run["program"] |= {name: getattr(settings, name) for name in _OF_PROGRAM}
        run["program"] |= {"mesh": mesh, "draft": draft, "order": _ORDER}
    return run


def renewed_run(run: dict[str, Any]) -> dict[str, Any]:
    """Gives what made a file of answers with today's names of draft sources, where an earlier version wrote it."""
    renewed, version = dict(run), run.get("format", 1)
    without_init = EARLIER_INIT if version in (1, 2) else None
    if version == 2:
        renewed["format"] = FORMAT
    for part in ("settings", "program"):
        values = renewed.get(part)
        if isinstance(values, dict) and isinstance(values.get("draft"), str):
            renewed[part] = values | {"draft": renewed_name(values["draft"], without_init=without_init)}
    return renewed

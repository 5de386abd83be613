"""The one text form of a draft source: `name[:shape][@option=value,...]`, such as `probe:15+4@mask_init=last_k`.

The shape is the source's positional field, options are its other fields, under their own names. `module:Class` names a
source of the user's own, all of whose fields are options.

| text | source |
|---|---|
| `plain` | plain decoding |
| `probe:14`, `probe:15+4` | a static tree of one or two masks |
| `dynamic:60@num_masks=2` | a dynamic tree of 60 rows and two masks |
| `ngram:10` | prompt lookup, a chain of ten |
| `recycle:60`, `recycle:static80` | Token Recycling |
| `merged:64`, `merged:64@warm=1` | one tree of 64 rows from all sources |
| `auto`, `auto:64@warm=1` | the same with 64 rows, fewer or none, whichever pays |
| `my_module:MySource@size=4` | a class that is imported |
"""

import dataclasses
import importlib
import re
import typing
from typing import Any

from jax_probe_mtp.drafting.mask_tokens import TUNED
from jax_probe_mtp.drafting.source import DraftSource, check_is_frozen
from jax_probe_mtp.errors import one_line

SOURCES = {  # the only list of sources: a new one is its file and its line here
    "plain": "jax_probe_mtp.drafting.plain:Plain",
    "probe": "jax_probe_mtp.drafting.probe:Probe",
    "dynamic": "jax_probe_mtp.drafting.probe:DynamicProbe",
    "ngram": "jax_probe_mtp.drafting.ngram:Ngram",
    "recycle": "jax_probe_mtp.drafting.recycle:Recycle",
    "merged": "jax_probe_mtp.drafting.merged.source:Merged",
    "auto": "jax_probe_mtp.drafting.merged.auto:Auto",
}
DEFAULT_DRAFT = "probe:14"  # the better tree of the two with 30 rows in docs/fidelity.md
PLAIN = "plain"
OLD_OPTIONS = {  # as files on disk may have them
    "init": "mask_init",
    "offset": "mask_offset",
    "ema": "mask_ema",
    "noise": "rank_with_noise",
    "n": "max_ngram",
}
_INIT = "mask_init"
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


def parse_draft(text: str) -> DraftSource:
    """Reads a draft source from its text form.

    Raises:
      ValueError: one line that names the text and what it could be.
    """
    matched = re.fullmatch(r"([\w.]+)(?::([\w+]+))?(?:@(.+))?", _renewed(text))
    if not matched:
        raise ValueError(
            f"draft {text!r} cannot be read: write name:shape@option=value,..., such as probe:15+4@mask_init=last_k."
        )
    name, shape, options = matched.groups()
    try:
        if name not in SOURCES and not (shape or "").isidentifier():
            raise ValueError(f"the name is none of {', '.join(SOURCES)}, and no module:Class.")
        source_class = _find_class(SOURCES.get(name, f"{name}:{shape}"))
        return _build(source_class, shape if name in SOURCES else None, options)
    except Exception as error:  # whatever a user's class raises
        raise ValueError(f"draft {text!r}: {one_line(error)}") from None


def draft_name(source: DraftSource) -> str:
    """Writes a source as `parse_draft` reads it; options that have their default are left out."""
    name = next((name for name, place in SOURCES.items() if place == _place(source)), _place(source))
    shape_field = _shape_field(type(source)) if name in SOURCES else None
    options = []
    for field in dataclasses.fields(source):  # type: ignore[arg-type]  # sources are dataclasses
        value = getattr(source, field.name)
        if field.name == shape_field:
            name += f":{_write(value)}"
        elif value != field.default:
            options.append(f"{field.name}={_write(value)}")
    return name + ("@" + ",".join(options) if options else "")


def source_name(text: str) -> str:
    """Gives what stands before the shape and the options of a text form."""
    return re.split("[:@]", text)[0]


def is_listed(source: DraftSource) -> bool:
    """Says whether a source is one of `SOURCES`."""
    return _place(source) in SOURCES.values()


def with_tuned_masks(source: DraftSource) -> DraftSource:
    """Gives the same source with masks that the caller brings.

    Raises:
      ValueError: if it has no masks, or its text says what they begin with.
    """
    fields = {field.name: field.default for field in dataclasses.fields(source)}  # type: ignore[arg-type]
    init = getattr(source, _INIT, None)
    if _INIT not in fields:
        raise ValueError(
            f"tuned masks are for a draft that has masks, such as {DEFAULT_DRAFT}, not {draft_name(source)}."
        )
    if init not in (fields[_INIT], TUNED):
        raise ValueError(f"tuned masks take the place of {_INIT} {init}; leave it out.")
    return dataclasses.replace(source, **{_INIT: TUNED})  # type: ignore[type-var]


def source_fields(name: str) -> frozenset[str]:
    """Names the fields of a source of the list, its shape's among them; none where the list lacks it."""
    if name not in SOURCES:
        return frozenset()
    return frozenset(field.name for field in dataclasses.fields(_find_class(SOURCES[name])))  # type: ignore[arg-type]


def renewed_name(text: str, *, without_init: str | None = None) -> str:
    """Rewrites a text form that an earlier version wrote into a file; what cannot be read stays as it is.

    `without_init` is the first value of masks whose text says none; None where that version's default is today's.
    The name of a class of a user's stays too: no version wrote it otherwise, and reading a file must import nothing.
    """
    if source_name(_renewed(text)) not in SOURCES or text == "auto":
        return text  # a --tree that earlier versions chose; the source of that name is always written with its rows
    try:
        source = parse_draft(text)
    except ValueError:
        return text
    if without_init and hasattr(source, _INIT) and not re.search(r"[@,](mask_)?init=", text):
        source = dataclasses.replace(source, **{_INIT: without_init})  # type: ignore[type-var]
    return draft_name(source)


def _renewed(text: str) -> str:
    """Rewrites what was called otherwise: `ar` and `probe:dynamic60k2`."""
    if text == "ar":
        return PLAIN
    text = re.sub(r"^probe:dynamic(\d+)k(\d+)$", r"dynamic:\1@num_masks=\2", text)
    return re.sub(r"^probe:dynamic(\d+)k(\d+)@", r"dynamic:\1@num_masks=\2,", text)


def _place(source: DraftSource) -> str:
    return f"{type(source).__module__}:{type(source).__qualname__}"


def _find_class(place: str) -> type[DraftSource]:
    module_name, _, class_name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(f"module {module_name} cannot be imported: {one_line(error)}.") from None
    found = getattr(module, class_name, None)
    if found is None:
        raise ValueError(f"module {module_name} has no class {class_name}.")
    if not isinstance(found, type) or not issubclass(found, DraftSource):
        raise ValueError(f"{place} is no DraftSource.")
    check_is_frozen(found)
    return found


def _build(source_class: type[DraftSource], shape: str | None, options: str | None) -> DraftSource:
    shape_field = _shape_field(source_class)
    names = [field.name for field in dataclasses.fields(source_class)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    if shape is not None:
        if shape_field is None:
            raise ValueError(f"it has no shape, got {shape!r}.")
        values[shape_field] = _read(source_class, shape_field, shape)
    for option in options.split(",") if options else []:
        key, _, text = option.partition("=")
        key = key if key in names else OLD_OPTIONS.get(key, key)
        if key not in names or key in values:
            twice = " once" if key in values else ""
            known = ", ".join(name for name in names if shape is None or name != shape_field)
            raise ValueError(f"it takes{twice} {known or 'no options'} after the @, got {option!r}.")
        values[key] = _read(source_class, key, text)
    try:
        source = source_class(**values)
        hash(source)  # it is a static argument of `jax.jit`
    except TypeError as error:  # a field without a default, one that has no hash, or no `propose`
        raise ValueError(f"{one_line(error)}.") from None
    return source


def _shape_field(source_class: type[DraftSource]) -> str | None:
    """Finds the field that the shape stands for: the first one that may be given by position."""
    fields = dataclasses.fields(source_class)  # type: ignore[arg-type]
    return next((field.name for field in fields if not field.kw_only), None)


def _read(source_class: type[DraftSource], field: str, text: str) -> Any:
    """Reads a field's value, by the field's annotation."""
    kind = typing.get_type_hints(source_class)[field]
    is_whole = _WHOLE.fullmatch(text) is not None
    try:
        if kind is bool:
            return {"0": False, "1": True}[text]
        if (kind is float or float in typing.get_args(kind)) and "_" not in text:
            return float(text)
        if int in typing.get_args(kind) and typing.get_origin(kind) is tuple:
            if not re.fullmatch(r"\d+(\+\d+)*", text, re.ASCII):
                raise ValueError(text)
            return tuple(map(int, text.split("+")))
        if is_whole and (kind is int or int in typing.get_args(kind)):
            return int(text)
        if text and (kind is str or str in typing.get_args(kind)):
            return text
    except (KeyError, ValueError):
        pass
    raise ValueError(f"{field} cannot be {text!r}.")


def _write(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)

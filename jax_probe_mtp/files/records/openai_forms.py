"""What OpenAI clients write: lines of batch files, and messages whose content is not one text.

Source: OpenAI's API reference, "Create chat completion" and "Batch".
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jax_probe_mtp.files.json_lines import excerpt

URLS = ("/v1/chat/completions", "/v1/completions")


def of_batch_line(where: str, fields: Any) -> Any:
    """Gives the record that a line of a batch file asks for, and any other value as it is.

    Args:
      where: the line's name for messages.
      fields: its JSON value.

    Raises:
      ValueError: for a batch line of another kind of request, or without a body.
    """
    if not isinstance(fields, dict) or not {"custom_id", "body"} <= fields.keys():
        return fields
    url, body = fields.get("url", URLS[0]), fields["body"]
    if url not in URLS:
        raise ValueError(f"{where} asks for {excerpt(url)}; give requests of {' or '.join(URLS)}.")
    if not isinstance(body, dict) or "id" in body:
        raise ValueError(f'{where}: body must be an object without an "id", got {excerpt(body)}.')
    return {"id": fields["custom_id"], **body}


def plain_messages(where: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gives messages as chat templates read them: each content one text.

    Text parts become one text, with a newline between them. Where there are tool calls a content may be missing, and their
    arguments become objects. All other keys stay, for the template to read.

    Args:
      where: the record's name for messages.
      messages: objects, each with a text `role`.

    Raises:
      ValueError: names the message, and the part that is no text.
    """
    return [_plain_message(f"{where}: messages[{i}]", message) for i, message in enumerate(messages)]


def _plain_message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        raise ValueError(f'{where} has no content; give a text, "" where there is none.')
    if isinstance(content, list):
        content = "\n".join(_text_of(where, part) for part in content)
    if not isinstance(content, str | None):
        raise ValueError(f"{where}: content must be a text or a list of text parts, got {excerpt(content)}.")
    plain = {**message, "content": content or ""}
    if calls:
        if not isinstance(calls, list):
            raise ValueError(f"{where}: tool_calls must be a list of objects, got {excerpt(calls)}.")
        plain["tool_calls"] = [_with_arguments(f"{where}: tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return plain


def _text_of(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"{where} holds a part of type {excerpt(kind)}; models here read text alone, so leave it out.")
    if kind is None or not isinstance(part.get("text"), str):
        raise ValueError(f'{where}: each part must be {{"type": "text", "text": ...}}, got {excerpt(part)}.')
    return str(part["text"])


def _with_arguments(where: str, call: Any) -> dict[str, Any]:
    """Gives a tool call with its arguments as an object, which templates write as JSON; clients send that JSON as a text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} must be an object with a function that has a name, got {excerpt(call)}.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):  # or nested too deep to be read
            arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{where}: arguments must be an object, or one as a JSON text, got {excerpt(function['arguments'])}."
        )
    return {**call, "function": {**function, "arguments": arguments}}

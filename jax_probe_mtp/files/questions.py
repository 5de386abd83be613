"""Questions of a benchmark, as Spec-Bench, SPEED-Bench, the Berkeley Function-Calling Leaderboard and OpenAI write them."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.json_lines import check_id, excerpt, json_lines
from jax_probe_mtp.files.records.openai_forms import of_batch_line, plain_messages
from jax_probe_mtp.files.records.record_fields import RULES

FORMS = '"turns" (Spec-Bench, SPEED-Bench), "question" and "function" (BFCL) or "messages" (OpenAI)'
# What stands in SPEED-Bench's files for texts that its authors may not copy.
_NOT_FETCHED = "FULL BENCHMARK DATA SHOULD BE FETCHED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark.

    Attributes:
      id: its name.
      category: what it is counted under.
      messages: the conversation to be answered, as the chat template takes it.
      tools: functions that the model may call, as JSON schemas; None where there are none.
    """

    id: str | int
    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """Gives the question as plain text.

        Raises:
          ValueError: if it is more than one message of the user's.
        """
        if self.tools or [message["role"] for message in self.messages] != ["user"]:
            raise ValueError(
                "this is a conversation or has tools, which need the chat template; leave --no-chat-template out, or give "
                "questions of one text."
            )
        return str(self.messages[0]["content"])


def read_questions(path: Path, per_category: int | None = None) -> list[Question]:
    """Reads questions, one JSON object a line, each in one of the forms that `docs/benchmark.md` lists.

    Args:
      path: the file.
      per_category: so many of each category, in file order; all when None. The whole file is checked all the same.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """
    if per_category is not None and per_category < 1:
        raise ValueError(f"per_category must be at least 1, got {per_category}.")
    questions: list[Question] = []
    taken: dict[str, int] = {}
    line_of: dict[str, int] = {}
    for _, number, where, line in json_lines(path):
        question = _question(where, number, line)
        name, category = question.id, question.category
        if str(name) in line_of:
            raise ValueError(f"{where} has the id {name!r} of line {line_of[str(name)]}; ids must differ.")
        line_of[str(name)] = number
        taken[category] = taken.get(category, 0) + 1
        if per_category is None or taken[category] <= per_category:
            questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions; give one JSON object a line.")
    return questions


def _question(where: str, number: int, line: Any) -> Question:
    fields = of_batch_line(where, line)
    if not isinstance(fields, dict) or not {"turns", "question", "messages"} & fields.keys():
        raise ValueError(f"{where} must be an object with {FORMS}, got {excerpt(line)}.")
    name: Any = fields.get("question_id", fields.get("id"))
    if "messages" in fields:
        name = number if name is None else name
        messages, tools = fields["messages"], fields.get("tools")
        category = fields.get("category") or ("tools" if tools else "messages")
    elif "question" in fields:
        messages, tools = _of_bfcl(where, fields)
        of_kind = re.fullmatch(r"(.+?)_\d[\d-]*", str(name))  # live_simple_3-2-0 is one of live_simple
        category = fields.get("category") or (of_kind[1] if of_kind else "tools")
    else:
        messages, tools, category = _of_turns(where, fields["turns"]), fields.get("tools"), fields.get("category")
    check_id(where, name)
    if not isinstance(category, str) or not category:
        raise ValueError(f'{where} must have a text "category", got {excerpt(category)}.')
    for field, value in (("messages", messages), ("tools", tools)):
        is_good, rule = RULES[field]
        if not is_good(value) and (field == "messages" or value is not None):
            raise ValueError(f"{where}: {field} must be {rule}, got {excerpt(value)}.")
    asked = _without_answer(where, plain_messages(where, messages))
    return Question(id=name, category=category, messages=asked, tools=tools or None)


def _of_turns(where: str, turns: Any) -> list[dict[str, Any]]:
    """Gives the first turn; source: Spec-Bench's question.jsonl and the data card of nvidia/SPEED-Bench."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
        raise ValueError(f'{where} must have "turns", a list that begins with a text, got {excerpt(turns)}.')
    if turns[0].startswith(_NOT_FETCHED):
        raise ValueError(
            f"{where}: the turns are SPEED-Bench's placeholder, not a question; make the file with its prepare_data.py."
        )
    return [{"role": "user", "content": turns[0]}]


def _of_bfcl(where: str, fields: Mapping[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Gives the first turn's messages, and the functions as tools; source: bfcl_eval/data in ShishirPatil/gorilla on GitHub."""
    turns, functions = fields["question"], fields.get("function")
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f'{where} must have "question", a list of turns, each a list of messages, got {excerpt(turns)}.'
        )
    is_objects, rule = RULES["tools"]
    if functions is None or not is_objects(functions):
        raise ValueError(
            f'{where} must have "function", {rule}, got {excerpt(functions)}; where its functions lie in other files, put '
            "them there."
        )
    return turns[0], [{"type": "function", "function": function} for function in functions]


def _without_answer(where: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out what the assistant says at the end: it is what is asked for."""
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise ValueError(
            f"{where} holds the assistant's messages alone, and so no question; give the user's before them."
        )
    return messages

"""Questions of a benchmark, as Spec-Bench writes them."""

import dataclasses
from pathlib import Path

from jax_probe_mtp.files.json_lines import check_id, excerpt, json_lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark: its id, its category and its first turn."""

    id: str | int
    category: str
    text: str


def read_questions(path: Path, per_category: int | None = None) -> list[Question]:
    """Reads questions as Spec-Bench writes them: a line is an object with `question_id`, `category` and `turns`.

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
    for _, number, where, record in json_lines(path):
        if not isinstance(record, dict) or "question_id" not in record:
            raise ValueError(f'{where} must be an object with a "question_id", got {excerpt(record)}.')
        name = record["question_id"]
        check_id(where, name)
        if str(name) in line_of:
            raise ValueError(f"{where} has the question_id {name!r} of line {line_of[str(name)]}; ids must differ.")
        line_of[str(name)] = number
        category, turns = record.get("category"), record.get("turns")
        if not isinstance(category, str) or not category:
            raise ValueError(f'{where} must have a text "category", got {excerpt(category)}.')
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
            raise ValueError(f'{where} must have "turns", a list that begins with a text, got {excerpt(turns)}.')
        taken[category] = taken.get(category, 0) + 1
        if per_category is None or taken[category] <= per_category:
            questions.append(Question(id=name, category=category, text=turns[0]))
    if not questions:
        raise ValueError(f"{path} holds no questions; give one JSON object a line.")
    return questions

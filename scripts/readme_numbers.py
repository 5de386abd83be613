"""Lists the numbers that the README claims, each beside the record it comes from; exits with 1 where one differs.

    python scripts/readme_numbers.py

A claim is a line of the README with `#` in the place of each number. In the sections that say what the method gives and what is
exact, a number that no claim covers is an error too (`tests/test_readme_numbers.py`).
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SECTIONS = ("What it gives", "What is exact")
NUMBER = re.compile(r"(?<![\w.,:=-])\d[\d,]*(?:\.\d+)?(?![\w]|\.\d|-)")
Value = tuple[str, Callable[[Any], float]]  # a record, and what it says


def _part(found: Any, part: int | None) -> Any:
    """Gives one of the records that a file holds together."""
    return found if part is None else found["records"][part]


def _run(found: Any, name: str, part: int | None = None) -> Any:
    [run] = [run for run in _part(found, part)["runs"] if run["run"] == name]
    return run


def _tau(record: str, run: str, part: int | None = None) -> Value:
    return record, lambda found: _run(found, run, part)["tau"]


def _speed(record: str, run: str, part: int | None = None) -> Value:
    return record, lambda found: _run(found, run, part)["speedup_vs_ar"]


def _rate(record: str) -> Value:
    return record, lambda found: found["runs"][0]["tokens_per_second"]


def _of_torch(name: int, mode: str) -> Value:
    """Gives transformers' tokens a second beside plain decoding's, on the questions that transformers answered."""

    def ratio(found: Any) -> float:
        [torch] = [run for run in found["runs"] if run["mode"] == mode]
        ours = _run(json.loads((RESULTS / BF16[name]).read_text(encoding="utf-8")), "ar")["by_question"]
        asked = [ours[question] for question in torch["by_question"]]
        rate = sum(1 + each["committed"] for each in asked) / sum(each["seconds"] for each in asked)
        return float(torch["tokens_per_second"] / rate)

    return TORCH[name], ratio


def _said(record: str, *names: Any) -> Value:
    def look(found: Any) -> float:
        for name in names:
            found = found[name]
        return float(found)

    return record, look


BF16 = "performance/smollm2-bf16-h100.json", "performance/qwen2.5-coder-bf16-h100.json"
F32 = "performance/smollm2-f32-h100.json", "performance/qwen2.5-coder-f32-h100.json"
TORCH = "performance/torch-smollm2-bf16-h100.json", "performance/torch-qwen2.5-coder-bf16-h100.json"
WHOLE, STEP = "drafting/whole-answers-bf16-h100.json", "performance/step-llama-3-8b-h100.json"
MERGED = "drafting/smollm2-cpu.json", "drafting/qwen2.5-coder-h200.json"
TUNED = "masks/smollm2-f32-h200.json", "masks/qwen2.5-coder-f32-h200.json"
ORDINARY = "exactness/ordinary-bfloat16-h200.json"


def _both(run: str) -> list[Value]:
    return [value for f32, bf16 in zip(F32, BF16, strict=True) for value in (_tau(f32, run), _speed(bf16, run))]


CLAIMS: dict[str, list[Value]] = {
    "# Spec-Bench questions, one at a time, at most # tokens": [
        (BF16[0], lambda found: found["settings"]["per_category"] * 13),
        _said(BF16[0], "settings", "max_new_tokens"),
    ],
    "| plain decoding | #, # (# tokens/s) | #, # (# tokens/s) |": [
        value
        for pair in zip(F32, BF16, strict=True)
        for value in (_tau(pair[0], "ar"), _speed(pair[1], "ar"), _rate(pair[1]))
    ],
    "| `probe:14@mask_init=mean`, the paper | #, # | #, # |": _both("probe:14"),
    "| `ngram:10`, prompt lookup | #, # | #, # |": _both("ngram:10"),
    "| `recycle:30`, Token Recycling | #, # | #, # |": _both("recycle:30"),
    "| `merged:16`, all of them, tuned mask | #, **#** | #, **#** |": [
        _tau(MERGED[0], "merged:16@mask_init=tuned"),
        _speed(WHOLE, "merged:16@mask_init=tuned", 0),
        _tau(MERGED[1], "merged:16@mask_init=tuned", 0),
        _speed(WHOLE, "merged:16@mask_init=tuned", 1),
    ],
    "| `merged:64`, tuned mask | **#** | **#** |": [
        _tau(MERGED[0], "merged:64@mask_init=tuned"),
        _tau(MERGED[1], "merged:64@mask_init=tuned", 0),
    ],
    "| transformers, compiled (# questions, #) | 1.00, # | 1.00, # |": [
        (TORCH[0], lambda found: len(found["runs"][0]["by_question"])),
        (TORCH[1], lambda found: len(found["runs"][0]["by_question"])),
        _of_torch(0, "static"),
        _of_torch(1, "static"),
    ],
    "| transformers, by default (the same) | 1.00, # | 1.00, # |": [_of_torch(0, "eager"), _of_torch(1, "eager")],
    "measures its mask on each prompt (tau #, #); a tuned mask gives # and #": [
        _tau("masks/auto-smollm2-cpu.json", "probe:14@mask_init=auto"),
        _tau("masks/auto-qwen2.5-coder-cpu.json", "probe:14"),
        _tau(TUNED[0], "probe:14@mask_init=tuned"),
        _tau(TUNED[1], "probe:14@mask_init=tuned"),
    ],
    "An 8B shape reads its weights at #% of the card's bandwidth; # rows cost # of one": [
        (STEP, lambda found: 100 * found["runs"][0]["of_bandwidth"]),
        _said(STEP, "runs", 2, "rows"),
        (STEP, lambda found: found["runs"][2]["step_ms"] / found["runs"][0]["step_ms"]),
    ],
    "plain decoding is # times as fast as llama.cpp's": [
        _said("performance/llama-cpp-smollm2-cpu.json", "runs", 0, "times_the_speed_of_llama_cpp")
    ],
    "on a CPU all # Spec-Bench answers are transformers' too": [
        _said("exactness/torch-float32-cpu.json", "summary", "same")
    ],
    "Of # answers # parted, # of them at a near-tie": [
        _said(ORDINARY, "summary", "records"),
        _said(ORDINARY, "summary", "differences"),
        _said(ORDINARY, "summary", "tie"),
    ],
}


# Measured, and kept as a table that was printed.
IN_DOCS = {"A call takes 1 to 6% longer": ("docs/exactness.md", "1 to 6% of a call of up to 64 rows")}


def _pattern(claim: str) -> str:
    return re.escape(re.sub(r"\s+", " ", claim)).replace(r"\#", r"([\d,.]*\d)").replace(r"\ ", r"\s+")


def unclaimed(text: str) -> list[str]:
    """Gives the numbers of `SECTIONS` that no claim covers, without those in code and in links."""
    for claim in [*CLAIMS, *IN_DOCS]:
        text = re.sub(_pattern(claim), "", text)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return [number for name in SECTIONS for number in NUMBER.findall(sections[name])]


def claims(text: str) -> Iterator[tuple[str, str, str, float]]:
    """Gives each number of the claims as the README writes it: the claim, the number, the record, and what that says.

    Raises:
      ValueError: where the README does not have a claim once.
    """
    for claim, values in CLAIMS.items():
        found = re.findall(_pattern(claim), text)
        if len(found) != 1:
            raise ValueError(f"the README has {len(found)} times: {claim}")
        numbers = found[0] if isinstance(found[0], tuple) else (found[0],)
        for number, (record, look) in zip(numbers, values, strict=True):
            content = json.loads((RESULTS / record).read_text(encoding="utf-8"))
            yield claim, number, record, look(content)


def is_as_said(number: str, value: float) -> bool:
    """Says whether a number is a value, rounded to its digits."""
    digits = len(number.partition(".")[2])
    return float(number.replace(",", "")) == round(value, digits)


def main() -> int:
    """Prints a line a number."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    is_right = True
    for claim, number, record, value in claims(text):
        is_right &= is_as_said(number, value)
        print(f"{number:>6}  {value:<10.4f} {record:50} {'' if is_as_said(number, value) else 'DIFFERS '}{claim}")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

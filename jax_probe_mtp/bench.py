"""Measures ways of drafting side by side: one model, one verifier, the same questions, interleaved question by question."""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_probe_mtp import exactness, tokenizer
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.draft_config import RecycleConfig
from jax_probe_mtp.generation import Decoder, Generation, Prompt, Settings
from jax_probe_mtp.records import Question
from jax_probe_mtp.runs import Run

Result = dict[str, Any]  # what one run made of one question
QUARTILES = (25, 50, 75)


class Bench:
    """Decodes questions with every run and compares each output with plain decoding's as it goes.

    Attributes:
      skipped: id of each question that does not fit the model -> why.
      results: run name -> question id -> result, of the questions that all runs have answered, in order.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Question],
        runs: Sequence[Run],
        settings: Settings,
        *,
        use_chat_template: bool = True,
    ) -> None:
        """Decodes nothing yet, but finds what cannot run.

        Args:
          checkpoint: the model.
          questions: what to ask.
          runs: plain decoding first, as `parse_runs` gives them.
          settings: the settings of all, but for lambda, which is the run's.
          use_chat_template: False takes the questions as plain text.

        Raises:
          ValueError: if a run cannot be had, or no question fits.
        """
        if settings.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}.")
        self._runs = list(runs)
        self._settings = [dataclasses.replace(settings, mask_ema=run.mask_ema) for run in runs]
        self._decoders = [Decoder(checkpoint, run.draft) for run in runs]
        self._prompts: list[Prompt] = []
        self._category_of: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.results: dict[str, dict[str, Result]] = {run.name: {} for run in runs}
        self._decoders[0].request([Prompt(id="of one token", token_ids=[0])], settings)  # settings that fit nobody
        for question in questions:
            token_ids = tokenizer.encode(checkpoint.tokenizer, question.text, use_chat_template=use_chat_template)
            prompt = Prompt(id=question.id, token_ids=token_ids)
            try:
                self._decoders[0].request([prompt], settings)
            except ValueError as error:
                self.skipped[str(question.id)] = str(error)
                continue
            for run, decoder, own in zip(self._runs, self._decoders, self._settings, strict=True):
                try:
                    decoder.request([prompt], own)
                except ValueError as error:
                    raise ValueError(f"run {run.name!r}: {error}") from None
            self._prompts.append(prompt)
            self._category_of[str(question.id)] = question.category
        if not self._prompts:
            raise ValueError(f"none of the questions can be asked: {next(iter(self.skipped.values()))}")

    @property
    def num_questions(self) -> int:
        """Questions that are asked."""
        return len(self._prompts)

    @property
    def num_done(self) -> int:
        """Questions that all runs have answered, from the first."""
        return len(self.results[self._runs[0].name])

    def compile(self) -> Iterator[None]:
        """Compiles every program that the questions need, several at a time; yields once a run.

        `measure` compiles what is missing, one program after the other.
        """
        size = self._settings[0].batch_size
        batches = [self._prompts[start : start + size] for start in range(0, len(self._prompts), size)]

        def compile_run(i: int) -> None:
            for batch in batches:
                self._decoders[i].compile(*self._decoders[i].request(batch, self._settings[i], size))

        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            yield from pool.map(compile_run, range(len(self._runs)))

    def measure(self) -> Iterator[int]:
        """Goes through the batches that are not done, and within each through the runs; yields answers as they come.

        Plain decoding is first in every batch, the others take turns in their order and its reverse. A warm table has
        to see the questions that are done once more: those runs decode them again, which yields nothing.
        """
        size = self._settings[0].batch_size
        first = self.num_done
        for start in range(0, len(self._prompts), size):
            batch = self._prompts[start : start + size]
            numbers = list(range(len(self._runs)))
            if start // size % 2:
                numbers[1:] = numbers[:0:-1]
            if start < first:
                for i in numbers:
                    draft = self._runs[i].draft
                    if isinstance(draft, RecycleConfig) and draft.is_warm:
                        self._decoders[i].run_batch(batch, self._settings[i])
                continue
            plainly: list[Generation] = []
            answers: dict[str, list[Result]] = {}
            for i in numbers:
                answers[self._runs[i].name], got = self._answer(i, batch, plainly)
                plainly = plainly or got
                if len(answers) == len(self._runs):  # a question counts when all runs have answered it
                    for name, results in answers.items():
                        self.results[name] |= {str(p.id): result for p, result in zip(batch, results, strict=True)}
                yield len(batch)

    def _answer(self, i: int, batch: list[Prompt], plainly: list[Generation]) -> tuple[list[Result], list[Generation]]:
        """Counts and times of run `i`; the batch's seconds are shared out evenly."""
        decoder, settings = self._decoders[i], self._settings[i]
        earlier = decoder.stats.seconds, decoder.stats.prefill_seconds
        answers = decoder.run_batch(batch, settings)
        seconds = (decoder.stats.seconds - earlier[0]) / len(batch)
        prefill = (decoder.stats.prefill_seconds - earlier[1]) / len(batch)
        results = []
        for prompt, expected, got in zip(batch, plainly or answers, answers, strict=True):
            difference = exactness.compare(self._decoders[0], prompt, settings, expected, got)
            results.append(
                {
                    "calls": got.calls,
                    "committed": got.committed,
                    "accepted_by_depth": got.accepted_by_depth,
                    "seconds": round(seconds, 5),
                    "prefill_seconds": round(prefill, 5),
                    "difference": str(difference) if difference else None,
                }
            )
        return results, answers

    def record(self) -> dict[str, Any]:
        """What has been measured so far, as JSON holds it.

        tau is pooled: tokens of decode calls over decode calls. A speed-up is a ratio of summed wall times, prefill
        included, and plain decoding's at one row a call is the only denominator. Quartiles are over questions.
        """
        plain = self.results[self._runs[0].name]
        return {
            "is_complete": self.num_done == self.num_questions,
            "questions": [prompt.id for prompt in self._prompts[: self.num_done]],
            "categories": {question: self._category_of[question] for question in plain},
            "skipped": self.skipped,
            "runs": [_summary(run, self.results[run.name], plain, self._category_of) for run in self._runs],
        }


def _summary(
    run: Run, mine: Mapping[str, Result], plain: Mapping[str, Result], category_of: Mapping[str, str]
) -> dict[str, Any]:
    ids = list(plain)
    by_category: dict[str, list[str]] = {}
    for question in ids:
        by_category.setdefault(category_of[question], []).append(question)

    def total(results: Mapping[str, Result], field: str, of: Sequence[str] = ids) -> Any:
        return sum(results[question][field] for question in of)

    def tau(of: Sequence[str]) -> float:
        calls = total(mine, "calls", of)
        return total(mine, "committed", of) / calls if calls else 1.0

    def speedup(of: Sequence[str]) -> float:
        return round(total(plain, "seconds", of) / total(mine, "seconds", of), 4)

    def over_categories(value: Callable[[Sequence[str]], float]) -> dict[str, float]:
        return {category: value(members) for category, members in by_category.items()}

    def quartiles(values: Sequence[float]) -> list[float]:
        return [round(float(value), 4) for value in np.percentile(values, QUARTILES)]

    calls, seconds = total(mine, "calls"), total(mine, "seconds")
    accepted = [sum(depth) for depth in zip(*(mine[q]["accepted_by_depth"] for q in ids), strict=True)]
    differences = {q: mine[q]["difference"] for q in ids if mine[q]["difference"]}
    # a prefill gives the first token, so a question of one token has no decode call to time
    in_calls = [(mine[q]["seconds"] - mine[q]["prefill_seconds"]) / mine[q]["calls"] for q in ids if mine[q]["calls"]]
    return {
        "run": run.name,
        "rows_per_call": run.draft.num_rows,
        "tau": tau(ids),
        "tau_by_category": over_categories(tau),
        "call_reduction": 1 - 1 / tau(ids),
        "calls": calls,
        "committed": total(mine, "committed"),
        "accepted_by_depth": accepted,
        "accepted_by_source": {run.method: sum(accepted)} if accepted else {},
        "exact_match": 1 - len(differences) / len(ids),
        "ties": sum(text.startswith("tie") for text in differences.values()),
        "differences": differences,
        "seconds": round(seconds, 4),
        "prefill_seconds": round(total(mine, "prefill_seconds"), 4),
        "tokens_per_second": round((total(mine, "committed") + len(ids)) / seconds, 2),
        "seconds_by_category": over_categories(lambda of: round(total(mine, "seconds", of), 4)),
        "speedup_vs_ar": speedup(ids),
        "speedup_vs_ar_by_category": over_categories(speedup),
        "speedup_quartiles": quartiles([speedup([question]) for question in ids]),
        "ms_per_call_quartiles": quartiles([1000 * value for value in in_calls] or [0.0]),
        "by_question": {question: mine[question] for question in ids},
    }


def environment(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a measurement depends on besides its settings: versions, device, dtype, the code's commit where it is known."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "jax_probe_mtp": _own_version(),
        "git_commit": _git_commit(),
        **versions,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind,
        "dtype": str(checkpoint.params["embed"].dtype),
    }


def model_identity(checkpoint: Checkpoint) -> dict[str, str]:
    """The model's name and a hash over its shape and a few values of every weight, which tells two models apart."""
    digest = hashlib.sha256(repr(checkpoint.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint.params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        first_values = leaf[(0,) * (leaf.ndim - 1)][:16]
        digest.update(np.asarray(first_values, np.float32).tobytes())
    return {"name": Path(checkpoint.name).name, "fingerprint": digest.hexdigest()[:16]}


def _own_version() -> str | None:
    try:
        return importlib.metadata.version("jax-probe-mtp")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return None


def _git_commit() -> str | None:
    """The commit of the checkout this file is tracked in, with "-dirty" if it was changed; None for an installed copy."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None

"""Measures ways of drafting side by side: one model, one verifier, the same questions, interleaved question by question."""

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.files.questions import Question
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.measuring.bench_summary import Result, summary
from jax_probe_mtp.measuring.timed_batch import TimedAnswer, TimedBatches
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness import first_difference


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
        runs: Sequence[DraftSource],
        settings: Settings,
        *,
        use_chat_template: bool = True,
        shared: Callable[[DraftSource], Any] = lambda source: None,
    ) -> None:
        """Decodes nothing yet, but finds what cannot run.

        Args:
          checkpoint: the model.
          questions: what to ask.
          runs: plain decoding first, as `parse_runs` gives them.
          settings: the settings of all.
          use_chat_template: False takes the questions as plain text.
          shared: gives what the rows of a run's source share; None where it begins by itself.

        Raises:
          ValueError: if a run cannot be had, or no question fits.
        """
        if settings.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}.")
        self._runs, self._settings = list(runs), settings
        self._names = [draft_name(source) for source in runs]
        self._decoders = [TimedBatches(checkpoint, source, shared(source)) for source in runs]
        self._is_stopping = threading.Event()
        self._category_of = {str(question.id): question.category for question in questions}
        self.results: dict[str, dict[str, Result]] = {name: {} for name in self._names}
        self._prompts, self.skipped = read_prompts(
            checkpoint, questions, settings.max_new_tokens, use_chat_template=use_chat_template
        )
        for prompt in self._prompts:
            for name, decoder in zip(self._names, self._decoders, strict=True):
                try:
                    decoder.lay_out([prompt], settings)
                except ValueError as error:
                    raise ValueError(f"run {name!r}: {error}") from None

    @property
    def num_questions(self) -> int:
        """Counts the questions that are asked."""
        return len(self._prompts)

    @property
    def num_done(self) -> int:
        """Counts the questions that all runs have answered, from the first."""
        return min(map(len, self.results.values()))

    def compile(self) -> Iterator[None]:
        """Compiles every program that the questions need, several at a time; yields once a run.

        `measure` compiles what is missing, one program after the other.
        """

        def compile_run(i: int) -> None:
            for batch in self._batches():
                if not self._is_stopping.is_set():
                    decoder = self._decoders[i]
                    decoder.compile(decoder.lay_out(batch, self._settings, self._settings.batch_size))

        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            try:
                yield from pool.map(compile_run, range(len(self._runs)))
            finally:
                self._is_stopping.set()  # an interrupt waits for no more than the programs at hand

    def measure(self) -> Iterator[int]:
        """Goes through the batches that are not done, and within each through the runs; yields answers as they come.

        Runs take turns in their order and its reverse. A source that learns across prompts has to see the
        questions that are done once more: its run decodes them again, which yields nothing.
        """
        first, size = self.num_done, self._settings.batch_size
        numbers = range(len(self._runs))
        for number, batch in enumerate(self._batches()):
            if number * size < first:
                for i in numbers:
                    if self._runs[i].learns_shared:
                        self._decoders[i].run(batch, self._settings)
                continue
            answers, times = {}, {}
            for i in reversed(numbers) if number % 2 else numbers:
                stats = self._decoders[i].stats
                earlier = stats.seconds, stats.prefill_seconds
                answers[i] = self._decoders[i].run(batch, self._settings)
                stats = self._decoders[i].stats
                times[i] = stats.seconds - earlier[0], stats.prefill_seconds - earlier[1]
                if len(answers) == len(self._runs):  # a question counts when all runs have answered it
                    for k in numbers:
                        self._keep(k, batch, answers[0], answers[k], *times[k])
                yield len(batch)

    def _batches(self) -> list[list[Prompt]]:
        size = self._settings.batch_size
        return [self._prompts[start : start + size] for start in range(0, len(self._prompts), size)]

    def _keep(
        self,
        i: int,
        batch: list[Prompt],
        plain: list[TimedAnswer],
        got: list[TimedAnswer],
        seconds: float,
        prefill: float,
    ) -> None:
        """Files the answers of run `i`, compared with plain decoding's; the batch's seconds are shared out evenly."""
        for prompt, expected, timed in zip(batch, plain, got, strict=True):
            answer = timed.generation
            difference = first_difference.compare_answers(
                self._decoders[0].checkpoint, prompt, self._settings, expected.generation, answer
            )
            self.results[self._names[i]][str(prompt.id)] = {
                "calls": answer.calls,
                "committed": answer.committed,
                "accepted_by_depth": answer.accepted_by_depth,
                "accepted_by_kind": timed.accepted_by_kind,
                "seconds": round(seconds / len(batch), 9),
                "prefill_seconds": round(prefill / len(batch), 9),
                "difference": str(difference) if difference else None,
            }

    def record(self) -> dict[str, Any]:
        """Gives what has been measured so far, as JSON holds it.

        tau is pooled: tokens of decode calls over decode calls. A speed-up is a ratio of summed wall times, prefill
        included, and plain decoding's at one row a call is the only denominator. Quartiles are over questions. What is
        said of single questions' times is null for batches, whose rows have no time of their own.
        """
        plain = dict(itertools.islice(self.results[self._names[0]].items(), self.num_done))
        has_times = self._settings.batch_size == 1
        return {
            "is_complete": self.num_done == self.num_questions,
            "questions": [prompt.id for prompt in self._prompts[: self.num_done]],
            "categories": {question: self._category_of[question] for question in plain},
            "skipped": self.skipped,
            "runs": [
                summary(source, self.results[name], plain, self._category_of, has_times)
                for name, source in zip(self._names, self._runs, strict=True)
            ],
        }


def read_prompts(
    checkpoint: Checkpoint, questions: Sequence[Question], max_new_tokens: int, *, use_chat_template: bool
) -> tuple[list[Prompt], dict[str, str]]:
    """Encodes questions; gives the prompts, and the id of each question that is too long for the model -> why.

    Raises:
      ValueError: if none is left, or the chat template cannot take one.
    """
    prompts: list[Prompt] = []
    skipped: dict[str, str] = {}
    context = checkpoint.config.context_length
    for question in questions:
        try:
            token_ids = _encoded(checkpoint.tokenizer, question, use_chat_template=use_chat_template)
        except ValueError as error:
            raise ValueError(f"question {question.id!r}: {error}") from None
        if len(token_ids) + max_new_tokens > context:
            size = f"{len(token_ids)} tokens and {max_new_tokens} new ones"
            skipped[str(question.id)] = f"{size} are more than the model's context of {context}."
        else:
            prompts.append(Prompt(id=question.id, token_ids=token_ids))
    if not prompts:
        raise ValueError(f"none of the questions can be asked; {next(iter(skipped))}: {next(iter(skipped.values()))}")
    return prompts, skipped


def _encoded(of: Any, question: Question, *, use_chat_template: bool) -> list[int]:
    """Gives the tokens of a question by this tokenizer."""
    if not use_chat_template:
        return tokenizer.encode(of, question.text, use_chat_template=False)
    return tokenizer.encode_messages(of, question.messages, tools=question.tools)

"""Times `model.generate` of transformers on torch, question by question, on a checkpoint.

torch is imported where it is used: without it the command says in one line what to install.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from torch_step import Record, greedy

from checkpoints_convert import load_checkpoint
from checkpoints_convert.compare import torch_model
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.model.fingerprint import model_identity

LOOKUP_TOKENS = 10  # the value of transformers' guide


def measure_generate(args: argparse.Namespace, header: Record) -> Iterator[Record]:
    """Yields the record, which begins with `header`, after each question."""
    import torch
    import transformers

    questions = read_questions(Path(args.questions), args.per_category)
    jax.config.update("jax_platforms", "cpu")  # it loads the checkpoint, and must leave the GPU's memory to torch
    checkpoint = load_checkpoint(args.model, dtype=args.dtype)
    prompts, skipped = read_prompts(checkpoint, questions, args.max_new_tokens, use_chat_template=True)
    for question, why in skipped.items():
        print(f"question {question} is skipped: {why}", file=sys.stderr)

    model = torch_model(checkpoint.config, checkpoint.params).to(args.device)
    for parameter in model.parameters():  # and no buffer: rope's frequencies stay float32, as in from_pretrained
        parameter.data = parameter.data.to(getattr(torch, args.dtype))
    model.set_attn_implementation("sdpa")
    model.generation_config = greedy(
        max_new_tokens=args.max_new_tokens, disable_compile=args.no_compile,
        eos_token_id=list(checkpoint.eos_token_ids) or None,
    )  # fmt: skip
    slots = max(len(prompt.token_ids) for prompt in prompts) + args.max_new_tokens
    static = transformers.StaticCache(config=model.config, max_cache_len=slots)
    kwargs_of: dict[str, Record] = {
        "eager": {},
        "static": {"past_key_values": static},
        "prompt_lookup": {"prompt_lookup_num_tokens": LOOKUP_TOKENS},
    }

    def answer(mode: str, token_ids: list[int]) -> tuple[float, list[int]]:
        static.reset()
        prompt_1T = torch.tensor([token_ids], device=args.device)
        start = time.perf_counter()
        output_1T = model.generate(prompt_1T, attention_mask=torch.ones_like(prompt_1T), **kwargs_of[mode])
        new_ids = output_1T[0, len(token_ids) :].tolist()  # waits for the device
        return time.perf_counter() - start, new_ids

    warm_up_seconds = {mode: answer(mode, list(prompts[0].token_ids))[0] for mode in args.modes}
    by_question: dict[str, Record] = {mode: {} for mode in args.modes}
    record = header | {"model": model_identity(checkpoint), "static_slots": slots, "skipped": skipped}
    for prompt in prompts:
        for mode in args.modes:
            seconds, token_ids = answer(mode, list(prompt.token_ids))
            by_question[mode][str(prompt.id)] = {"seconds": seconds, "token_ids": token_ids}
        runs = [_summary(mode, warm_up_seconds[mode], by_question) for mode in args.modes]
        record |= {"is_complete": prompt is prompts[-1], "runs": runs}
        yield record
    print(f"{checkpoint.name}, {args.dtype}, {record['environment']['device']}, {len(prompts)} questions")
    print(f"{'mode':14}   seconds  tokens  tokens/s  warm-up s   texts equal to {args.modes[0]}'s")
    for run in record["runs"]:
        print(
            f"{run['mode']:14} {run['seconds']:9.2f} {run['tokens']:7} {run['tokens_per_second']:9.2f} "
            f"{run['warm_up_seconds']:10.1f}   {run['num_equal_to_first']}/{len(prompts)}"
        )


def _summary(mode: str, warm_up_seconds: float, by_question: dict[str, Record]) -> Record:
    """Sums up a mode's questions, and counts the texts that are those of the first mode."""
    mine, first = by_question[mode], next(iter(by_question.values()))
    tokens = sum(len(result["token_ids"]) for result in mine.values())
    seconds = sum(result["seconds"] for result in mine.values())
    return {
        "mode": mode,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "warm_up_seconds": warm_up_seconds,
        "num_equal_to_first": sum(mine[name]["token_ids"] == first[name]["token_ids"] for name in mine),
        "by_question": mine,
    }

"""Measures what rounding weights to eight bits costs: our format and llama.cpp's Q8_0 beside the unrounded model.

    python scripts/peers/quality.py --model MODEL --questions F.jsonl --output R.json

The unrounded model answers each question greedily in float32. Then every model reads question and answer, and its
probabilities at each place of the answer are compared with the unrounded model's: the Kullback-Leibler divergence a token in
nats, the share of places with the same best token, and the ratio of the answers' perplexities. Only weights differ: all is
computed in float32.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import generate
from jax_probe_mtp.commands import options
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params, quantize_params
from jax_probe_mtp.model.transformer import full_logits

PIECE = 256  # texts are padded to multiples of it


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each kind of weights, and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_questions(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args(argv)
    whole_files.check_files({"--output": args.output}, [args.questions])
    if args.weights or args.dtype not in (None, "float32"):
        raise ValueError("the unrounded model is in float32: leave --weights and --dtype out.")
    checkpoint = load_checkpoint(args.model, dtype="float32", revision=args.revision, eos_token_ids=args.eos_token_id)
    asked = read_questions(args.questions, args.per_category)
    prompts, skipped = read_prompts(checkpoint, asked, args.max_new_tokens, use_chat_template=not args.no_chat_template)
    options.say_skipped(skipped)
    settings = Settings(max_new_tokens=args.max_new_tokens, batch_size=8)
    answers = generate(checkpoint, prompts, draft="recycle:30", settings=settings)
    texts = [(list(prompt.token_ids), answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]
    of_model = {"int8": quantize_params(checkpoint.params), "Q8_0": as_q8_0(checkpoint.params)}
    runs = []
    for name, params in of_model.items():
        runs.append({"weights": name} | compare(checkpoint.config, checkpoint.params, params, texts))
        print(
            " ".join(f"{key} {value:.5g}" if key != "weights" else value for key, value in runs[-1].items()), flush=True
        )
    if args.output:
        record = {"environment": environment("float32"), "model": Path(args.model).name, "questions": len(texts)}
        whole_files.write_json(args.output, record | {"max_new_tokens": args.max_new_tokens, "runs": runs})
    return 0


def as_q8_0(params: Params) -> Params:
    """Gives every matrix, the embedding too, as llama.cpp rounds it: groups of 32 along the summed axis."""

    def round_trip(weight_OI: np.ndarray) -> np.ndarray:
        kind = gguf.GGMLQuantizationType.Q8_0
        return gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(weight_OI), kind), kind)

    def leaf(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        if array.ndim < 2:
            return array
        values = np.asarray(array, np.float32)
        is_table = path[0].key in ("embed", "head")
        return jnp.asarray(round_trip(values) if is_table else round_trip(values.T).T)

    rounded: Params = jax.tree_util.tree_map_with_path(leaf, params)
    return rounded


def compare(
    cfg: ModelConfig, plain: Params, rounded: Params, texts: Sequence[tuple[list[int], list[int]]]
) -> dict[str, Any]:
    """Compares two models on questions and answers, token by token of the answers."""
    measure = _measure(cfg)
    sums = np.zeros(5)
    for prompt, answer in tqdm(texts, unit="text", disable=None):
        ids = np.zeros((1, -(-len(prompt + answer) // PIECE) * PIECE), np.int32)
        ids[0, : len(prompt + answer)] = prompt + answer
        sums += np.asarray(measure(plain, rounded, ids, len(prompt), len(answer)), np.float64)
    divergence, same, nats, rounded_nats, count = sums
    return {
        "tokens": int(count),
        "kl": divergence / count,
        "same_best": same / count,
        "perplexity_ratio": float(np.exp((rounded_nats - nats) / count)),
    }


def _measure(cfg: ModelConfig) -> Callable[..., jax.Array]:
    @jax.jit
    def measure(plain: Params, rounded: Params, ids_1T: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
        logp_TV, logq_TV = (jax.nn.log_softmax(full_logits(params, cfg, ids_1T)[0]) for params in (plain, rounded))
        next_T = jnp.roll(ids_1T[0], -1)
        place_T = jnp.arange(len(next_T))
        is_answer_T = (place_T >= start - 1) & (place_T < start + count - 1)
        nats_T, rounded_nats_T = (
            -jnp.take_along_axis(log_TV, next_T[:, None], axis=1)[:, 0] for log_TV in (logp_TV, logq_TV)
        )
        each = (
            jnp.sum(jnp.exp(logp_TV) * (logp_TV - logq_TV), axis=1),
            jnp.argmax(logp_TV, axis=1) == jnp.argmax(logq_TV, axis=1),
            nats_T,
            rounded_nats_T,
            jnp.ones_like(nats_T),
        )
        return jnp.stack([jnp.sum(jnp.where(is_answer_T, values_T, 0)) for values_T in each])

    return measure


if __name__ == "__main__":
    sys.exit(exit_status(main))

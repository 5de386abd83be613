"""Measures how often a mask's best tokens hold the token that truly came, for every init and for tuned masks.

    python scripts/measure/mask_hits.py --model MODEL --questions F.jsonl --per-category 2 \
        --masks TUNED.safetensors --output R.json

The model answers the questions plainly. Then every candidate runs beside every place of the answers, as the vector that it
would be there while decoding. `--weights` rounds the weights first, to see whether masks tuned on the model help its
relatives: int8 with a scale per output channel, q4 with a scale for each 32 values.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.commands.options import NEW_TOKENS
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.mask_tokens import TRIED, init_masks, update_masks
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.model.side_rows import side_hidden
from jax_probe_mtp.model.transformer import full_forward
from jax_probe_mtp.tuning.loss import HIT_SIZES, ranks
from jax_probe_mtp.tuning.masks_file import load_masks

INITS = (*TRIED, ("last_k", 0.1), ("sample", 0.1), ("offset", 0.1))
TUNED_EMAS = (0.0,)
PADDED = 128  # lengths are rounded up to a multiple, so that few programs are compiled


def main() -> int:
    """Answers, measures, writes the record and prints its table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--questions", required=True, type=Path, metavar="F.jsonl", help="in Spec-Bench's format")
    parser.add_argument(
        "--per-category", type=positive, metavar="N", help="the first N of each category (default: all)"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=NEW_TOKENS, metavar="N")
    parser.add_argument("--masks", type=Path, nargs="*", default=[], metavar="FILE", help="tuned masks")
    parser.add_argument("--masks-of-relative", action="store_true", help="take masks of another model as wide")
    parser.add_argument("--weights", choices=("int8", "q4"), help="round the weights first")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--output", required=True, type=Path, metavar="R.json")
    args = parser.parse_args()

    check_files({"--output": args.output}, [args.questions, *args.masks])
    questions = read_questions(args.questions, args.per_category)
    checkpoint = load_checkpoint(args.model, dtype=args.dtype)
    tuned = {
        path.stem: load_masks(path, checkpoint, is_relative=args.masks_of_relative).masks_MD for path in args.masks
    }
    if args.weights:
        checkpoint = rounded(checkpoint, args.weights)
    prompts, _ = read_prompts(checkpoint, questions, args.max_new_tokens, use_chat_template=True)
    settings = Settings(max_new_tokens=args.max_new_tokens, batch_size=16, temperature=args.temperature)
    answers = list(Decoder(checkpoint, parse_draft(PLAIN)).run(prompts, settings))
    category_of = {question.id: question.category for question in questions}
    hits: dict[str, dict[str, list[list[int]]]] = {}
    for answer in answers:
        for name, count_MH in count_hits(checkpoint, answer.prompt_ids, answer.token_ids, tuned).items():
            of_category = hits.setdefault(name, {})
            before = of_category.get(category_of[answer.id], np.zeros_like(count_MH))
            of_category[category_of[answer.id]] = (before + count_MH).tolist()
    record = {
        "environment": environment(args.dtype),
        "model": {**model_identity(checkpoint), "weights": args.weights},
        "settings": {
            "questions": args.questions.name,
            "per_category": args.per_category,
            "max_new_tokens": args.max_new_tokens,
            "temperature": args.temperature,
        },
        "hit_sizes": HIT_SIZES,
        "fields": "hits[vector][category][mask] = [places, hits among the best 1, 4, ...]",
        "hits": hits,
    }
    write_json(args.output, record)
    for name, of_category in hits.items():
        total_MH = np.sum([np.asarray(counts) for counts in of_category.values()], axis=0)
        rates = [" ".join(f"{rate:.3f}" for rate in of_mask[1:] / max(of_mask[0], 1)) for of_mask in total_MH]
        print(f"{name:24} {' | '.join(rates)}")
    return 0


def count_hits(
    checkpoint: Checkpoint, prompt_ids: list[int], token_ids: list[int], tuned: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Counts, for each vector, the true tokens among its best, int [M, 1 + sizes]: the places, then the hits."""
    ids = np.asarray(prompt_ids + token_ids, np.int32)
    P, T = len(prompt_ids), len(ids)
    size = -(-T // PADDED) * PADDED
    token_1T = jnp.asarray(np.pad(ids, (0, size - T))[None])
    _, cache = _full_forward(checkpoint.params, checkpoint.config, token_1T)
    found = {}
    for name, first_MD, ema in vectors(checkpoint, prompt_ids, tuned):
        place_Q = np.arange(P - 1, T - 2)
        masks_QMD = moved(checkpoint, first_MD, token_ids, ema)[: len(place_Q)]
        M, Q = masks_QMD.shape[1], len(place_Q)
        padding = PADDED - Q % PADDED
        padded_1QMD = np.pad(masks_QMD, ((0, padding), (0, 0), (0, 0)))[None]
        target_QM = place_Q[:, None] + 2 + np.arange(M)
        is_there_QM = target_QM < T
        token_QM = ids[np.minimum(target_QM, T - 1)]
        rank_QM = _ranks(
            checkpoint.params,
            cache,
            padded_1QMD,
            np.pad(place_Q, (0, padding))[None],
            np.pad(token_QM, ((0, padding), (0, 0)))[None],
            cfg=checkpoint.config,
        )[0, :Q]
        counts = [np.sum(is_there_QM, axis=0)]
        counts += [np.sum(is_there_QM & (np.asarray(rank_QM) < size), axis=0) for size in HIT_SIZES]
        found[name] = np.stack(counts, axis=1)
    return found


def vectors(checkpoint: Checkpoint, prompt_ids: list[int], tuned: dict[str, np.ndarray]) -> Any:
    """Gives (name, first value [M, D], lambda) of every vector that is measured."""
    table_VD = checkpoint.params["embed"]
    prompt_1TD = table_VD[jnp.asarray(prompt_ids)][None]
    for init, ema in INITS:
        first = init_masks(
            table_VD,
            prompt_1TD,
            jnp.asarray([len(prompt_ids)]),
            jnp.zeros(1, jnp.uint32),
            num_masks=1,
            init=init,
            offset=5.0,
        )
        yield f"{init} {ema:g}", first[0], ema
    for name, masks_MD in tuned.items():
        for ema in TUNED_EMAS:
            yield f"{name} {ema:g}", jnp.asarray(masks_MD), ema


def moved(checkpoint: Checkpoint, first_MD: jax.Array, token_ids: list[int], ema: float) -> np.ndarray:
    """Gives the masks beside each place from the last prompt token on, [Q, M, D]: moved by the tokens up to there."""
    embedded_TD = checkpoint.params["embed"][jnp.asarray(token_ids)]

    def move(masks_1MD: jax.Array, token_D: jax.Array) -> tuple[jax.Array, jax.Array]:
        masks_1MD = update_masks(masks_1MD, token_D[None, None], jnp.ones(1, jnp.int32), ema)
        return masks_1MD, masks_1MD[0]

    _, after_QMD = jax.lax.scan(move, first_MD[None].astype(jnp.float32), embedded_TD)
    return np.concatenate([np.asarray(first_MD)[None], np.asarray(after_QMD)])


def _ranks_of(params: Any, cache: Any, masks_1QMD: Any, place_1Q: Any, token_1QM: Any, cfg: Any) -> jax.Array:
    hidden_1QMD = side_hidden(params, cfg, cache, masks_1QMD, place_1Q)
    flat = ranks(params, cfg, hidden_1QMD.reshape(-1, hidden_1QMD.shape[-1]), jnp.asarray(token_1QM).reshape(-1))
    return flat.reshape(token_1QM.shape)


_full_forward = jax.jit(full_forward, static_argnums=1)
_ranks = jax.jit(_ranks_of, static_argnames="cfg")


def rounded(checkpoint: Checkpoint, how: str) -> Checkpoint:
    """Rounds every matrix of the layers, as quantized weights would be, and keeps the dtype."""

    def round_matrix(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        matrix = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)  # its summed axis is the first, near enough
        if how == "int8":
            scale = jnp.max(jnp.abs(matrix), axis=0, keepdims=True) / 127
            return (jnp.round(matrix / jnp.maximum(scale, 1e-12)) * scale).reshape(leaf.shape).astype(leaf.dtype)
        groups = matrix.reshape(-1, 32)
        scale = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / 7
        return (jnp.round(groups / jnp.maximum(scale, 1e-12)) * scale).reshape(leaf.shape).astype(leaf.dtype)

    layers = jax.tree.map(round_matrix, checkpoint.params["layers"])
    return dataclasses.replace(checkpoint, params={**checkpoint.params, "layers": layers})


if __name__ == "__main__":
    sys.exit(exit_status(main))

"""Batches for tests: prompts with seeds, and settings by name."""

from jax_probe_mtp import Prompt, Settings, make_batch


def batch_of(cfg, source, prompts, *, eos_token_ids, seeds=None, rows=None, is_sampled=None, **settings):
    """Makes a batch whose rows draw with the given seeds, 0 each when left out."""
    seeds = [0] * len(prompts) if seeds is None else seeds
    records = [Prompt(id=i, token_ids=ids, seed=seed) for i, (ids, seed) in enumerate(zip(prompts, seeds, strict=True))]
    return make_batch(
        cfg, source, records, Settings(**settings), eos_token_ids=eos_token_ids, rows=rows, is_sampled=is_sampled
    )

"""Batches for tests: prompts with seeds, and settings by name."""

from jax_probe_mtp import Prompt, Settings, make_batch


def batch_of(cfg, source, prompts, *, eos_token_ids, seeds=None, rows=None, is_sampled=None, own=None, **settings):
    """Makes a batch whose rows draw with the given seeds, 0 each when left out, and have `own` settings each."""
    seeds, own = seeds or [0] * len(prompts), own or [{}] * len(prompts)
    of_rows = zip(prompts, seeds, own, strict=True)
    records = [Prompt(id=i, token_ids=ids, seed=seed, **more) for i, (ids, seed, more) in enumerate(of_rows)]
    return make_batch(
        cfg, source, records, Settings(**settings), eos_token_ids=eos_token_ids, rows=rows, is_sampled=is_sampled
    )

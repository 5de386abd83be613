"""Prompts that pass through the rows of a batch, and what came of them."""

import random

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.drafting import Probe
from jax_probe_mtp.generation.answers import Generation

PROBE = Probe(widths=(7, 3), mask_init="mean")
OF_REFERENCE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}
S = 64  # capacity
SETTINGS = Settings(max_new_tokens=16, batch_size=3, calls_per_chunk=2, capacity=S)


def _prompts():
    """Makes prompts of 1 to 40 tokens; every third is drawn, some with cuts, some with a limit of their own."""
    draw = random.Random(1)
    prompts = []
    for i in range(14):
        own = {"token_ids": [draw.randrange(61) for _ in range(draw.choice([1, 2, 5, 9, 23, 40]))]}
        if i % 3 == 1:
            own |= {"temperature": 1.0, "seed": 100 + i}
        if i % 6 == 4:
            own |= {"top_k": 9, "top_p": 0.9}
        if i % 4 == 2:
            own |= {"max_new_tokens": draw.randrange(1, 12)}
        prompts.append(Prompt(id=f"p{i}", **own))
    return prompts


PROMPTS = _prompts()


def answers(updates):
    return {generation.id: generation for update in updates for _, generation in update.finished}


def same_in_any_company(decode, settings):
    """Checks that records are the same to the last bit together, in another order and alone; gives them."""
    together = answers(decode(PROMPTS, settings)[0])
    shuffled = random.Random(4).sample(PROMPTS, len(PROMPTS))
    assert answers(decode(shuffled, settings)[0]) == together
    for prompt in PROMPTS[:6]:
        assert answers(decode([prompt], settings)[0]) == {prompt.id: together[prompt.id]}
    return together


def refused(i):
    return Generation(
        id=f"no {i}",
        prompt_ids=[],
        token_ids=[],
        text="",
        finish_reason="error",
        draft="",
        calls=0,
        committed=0,
        accepted_by_depth=[0, 0],
        error="its template failed",
    )


def stopped_by_hand(tokenizer, tokens, stop):
    """Counts token by token how many tokens it takes until the text holds a stop string, and gives the text before it."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        found = [text.find(one) for one in stop if one in text]
        if found:
            return count, text[: min(found)]
    return None

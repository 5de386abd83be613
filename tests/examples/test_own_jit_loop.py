"""The examples of own_jit_loop.py against the NumPy model: which sample is likeliest, and where a budget ends a text."""

import jax.numpy as jnp
import numpy as np
import own_jit_loop
import pytest
import reference
from checkpoints import EOS, make_checkpoint, write_folder
from own_jit_loop import best_sample, decode_within
from support.generation.row_streams import OF_REFERENCE, PROBE

from jax_probe_mtp import Prompt, Settings, make_batch
from jax_probe_mtp.decoding.settings import sample_seed
from jax_probe_mtp.drafting import Plain

PROMPTS = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8]]
NEW = 24


def costs(model, prompt, tokens):
    """-log p of each token by the model's softmax, in nats."""
    found = []
    for number, token in enumerate(tokens):
        logits = model.next_logits([*prompt, *tokens[:number]])
        found.append(np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[token])
    return np.asarray(found)


def test_the_likeliest_sample_is_picked_inside_the_program(tiny):
    samples = [Prompt(token_ids=PROMPTS[0], sample=number) for number in range(4)]
    settings = Settings(max_new_tokens=NEW, temperature=0.8, logprobs=True)
    batch = make_batch(tiny.cfg, PROBE, samples, settings, eos_token_ids=[EOS])
    best, mean_B, accepted_B = best_sample(tiny.params, batch, tiny.cfg, PROBE)
    means, accepted = [], []
    for sample in samples:
        draw = {"max_new_tokens": NEW, "eos": (EOS,), "seed": sample_seed(0, sample), "temperature": 0.8}
        plain, gap = reference.plain_decode(tiny.reference, PROMPTS[0], **draw)
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        means.append(-costs(tiny.reference, PROMPTS[0], plain).mean())
        accepted.append(sum(reference.probe_decode(tiny.reference, PROMPTS[0], OF_REFERENCE, **draw)[2]))
    np.testing.assert_allclose(mean_B, means, atol=1e-4)
    assert int(best) == int(np.argmax(means))
    assert accepted_B.tolist() == accepted
    assert sum(accepted) > 0


@pytest.mark.parametrize("budget", [9.0, 30.0, 1e9])
def test_a_budget_ends_the_text_at_the_token_that_breaks_it(tiny, budget):
    batch = make_batch(
        tiny.cfg, PROBE, PROMPTS, Settings(max_new_tokens=NEW, logprobs=True, capacity=64), eos_token_ids=[EOS]
    )
    token_BT, num_new_B, calls_A = decode_within(tiny.params, batch, tiny.cfg, PROBE, jnp.float32(budget))
    by_plain = decode_within(tiny.params, batch, tiny.cfg, Plain(), jnp.float32(budget))
    expected_calls = np.zeros(3, int)
    for row, prompt in enumerate(PROMPTS):
        how = {"max_new_tokens": NEW, "eos": (EOS,)}
        plain, _ = reference.plain_decode(tiny.reference, prompt, **how)
        spent = np.cumsum(costs(tiny.reference, prompt, plain))
        assert np.abs(spent - budget).min() > 1e-2, "choose another budget: rounding could decide this one"
        kept = min(int(np.sum(spent <= budget)) + 1, len(plain))
        for tokens, num in ((token_BT, num_new_B), by_plain[:2]):
            assert int(num[row]) == kept
            assert tokens[row, len(prompt) : len(prompt) + kept].tolist() == plain[:kept]
        emitted = 1
        for accepted in reference.probe_decode(tiny.reference, prompt, OF_REFERENCE, **how)[2]:
            if emitted < kept:
                expected_calls[accepted] += 1
                emitted += accepted + 1
    assert calls_A.tolist() == expected_calls.tolist()
    assert by_plain[2].tolist() == [int(num_new_B.sum()) - len(PROMPTS)]
    if budget == 9.0:
        assert num_new_B.max() < NEW
    if budget == 1e9:
        assert calls_A[1:].sum() > 0


def test_it_runs_as_a_command(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "tiny", make_checkpoint(tiny))
    own_jit_loop.main(["--model", str(folder), "--prompt", "w5 w9", "--draft", "probe:4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["mean", "accepted", lines[2].split(" ")[0], "calls"]
    assert " tokens for 40 nats: " in lines[2]

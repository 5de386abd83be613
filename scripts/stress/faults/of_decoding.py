"""Faults in `decoding`."""

from faults.fault import Fault

DECODING = (
    Fault(
        name="walk-takes-another-branch",
        breaks="the walk goes to a node of the right depth and token under another parent",
        file="jax_probe_mtp/decoding/verify.py",
        old="(tree.parent_BN == node_B[:, None]) & (tree.token_BN == token_B[:, None])",
        new="(tree.depth_BN == depth) & (tree.token_BN == token_B[:, None])",
        tests=("tests/decoding/test_verify.py",),
    ),
    Fault(
        name="walk-never-accepts",
        breaks="a draft is accepted only if all nodes match, so none is; the text stays right",
        file="jax_probe_mtp/decoding/verify.py",
        old="is_match_B = jnp.any(is_match_BN, axis=1)",
        new="is_match_B = jnp.all(is_match_BN, axis=1)",
        tests=("tests/decoding/test_verify.py",),
    ),
    Fault(
        name="bonus-of-the-parent",
        breaks="the token after an accepted node is taken from the node above it",
        file="jax_probe_mtp/decoding/verify.py",
        old="jnp.where(is_match_B, next_token(node_B, depth, chosen_BD), token_B)",
        new="jnp.where(is_match_B, next_token(walked[0], depth, chosen_BD), token_B)",
        tests=("tests/decoding/test_verify.py",),
    ),
    Fault(
        name="limit-of-accepted-drafts-one-less",
        breaks="a call accepts one draft less than max_accept allows",
        file="jax_probe_mtp/decoding/verify.py",
        old="is_match_B &= depth <= max_accept",
        new="is_match_B &= depth < max_accept",
        tests=("tests/decoding/test_verify.py",),
    ),
    Fault(
        name="mask-at-its-owners-position",
        breaks="masks sit one position too early, the first where its owner does",
        file="jax_probe_mtp/decoding/block.py",
        old="np.arange(1, num_masks + 1, dtype=np.int32)",
        new="np.arange(num_masks, dtype=np.int32)",
        tests=("tests/decoding/test_block.py",),
    ),
    Fault(
        name="position-by-number-of-the-node",
        breaks="nodes of a tree without masks are turned by their number, not by their depth; chains stay right",
        file="jax_probe_mtp/decoding/block.py",
        old="return length_B[:, None] + depth_BN",
        new="return length_B[:, None] + jnp.arange(depth_BN.shape[1], dtype=jnp.int32)[None]",
        tests=("tests/decoding/test_block.py",),
    ),
    Fault(
        name="end-of-text-token-dropped",
        breaks="a text ends before its end-of-text token, not with it",
        file="jax_probe_mtp/decoding/step.py",
        old="jnp.where(has_eos_B, jnp.argmax(is_eos_BP, axis=1).astype(jnp.int32) + 1, num_new_B)",
        new="jnp.where(has_eos_B, jnp.argmax(is_eos_BP, axis=1).astype(jnp.int32), num_new_B)",
        tests=("tests/decoding/test_loop.py",),
    ),
    Fault(
        name="penalties-without-the-newest-token",
        breaks="penalties count the text without the root of the call",
        file="jax_probe_mtp/decoding/step.py",
        old="num_tokens_B = state.length_B + 1  # the root among them",
        new="num_tokens_B = state.length_B",
        tests=("tests/decoding/lossless/test_penalties.py",),
    ),
    Fault(
        name="logprobs-of-other-nodes",
        breaks="log-probabilities are those after the tree's first nodes, not after the accepted ones",
        file="jax_probe_mtp/decoding/step.py",
        old="token_logprobs(logits.rows(accepted.node_BP), accepted.token_BP, decode_cfg)",
        new="token_logprobs(logits.first(accepted.node_BP.shape[1]), accepted.token_BP, decode_cfg)",
        tests=("tests/decoding/test_rows.py",),
    ),
)

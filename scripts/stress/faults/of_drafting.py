"""Faults in `drafting`."""

from faults.fault import Fault

DRAFTING = (
    Fault(
        name="deepest-nodes-do-not-read-the-root",
        breaks="the mask of a tree ends one edge too early",
        file="jax_probe_mtp/drafting/tree.py",
        old="for _ in range(max_depth):",
        new="for _ in range(max_depth - 1):",
        tests=("tests/drafting/test_tree.py",),
    ),
    Fault(
        name="ngram-without-the-newest-token",
        breaks="the chain of an n-gram ends before the newest token of the text",
        file="jax_probe_mtp/drafting/ngram.py",
        old="is_text_BP = is_found_B1 & (place_BP <= root_position_B[:, None])",
        new="is_text_BP = is_found_B1 & (place_BP < root_position_B[:, None])",
        tests=("tests/drafting/test_ngram.py",),
    ),
    Fault(
        name="recycled-under-the-token-before",
        breaks="what a prompt's tokens are followed by goes into the table's rows of the tokens before them",
        file="jax_probe_mtp/drafting/recycle.py",
        old="return harvest(table, token_BR, is_used_BR, *best_successors(logits, chunk.sampling))",
        new="return harvest(table, before_BR, is_used_BR, *best_successors(logits, chunk.sampling))",
        tests=("tests/drafting/test_recycle_decode.py",),
    ),
    Fault(
        name="weights-learn-of-what-nobody-asked",
        breaks="the merged draft's weights also learn from nodes whose parents were refused",
        file="jax_probe_mtp/drafting/merged/learned.py",
        old="is_asked_BN = jnp.take_along_axis(is_accepted_BN, above_BN, axis=1) & is_node_BN & ~is_root_BN",
        new="is_asked_BN = is_node_BN & ~is_root_BN",
        tests=("tests/drafting/merged/test_merged_decode.py",),
    ),
    Fault(
        name="auto-takes-the-slower-size",
        breaks="--draft auto goes over to a size that gave fewer tokens a second",
        file="jax_probe_mtp/drafting/merged/choice.py",
        old="if rate > usual:",
        new="if rate < usual:",
        tests=("tests/drafting/merged/test_choice.py",),
    ),
)

"""The drawing of a call, beside lines that were written by hand."""

import jax.numpy as jnp

from jax_probe_mtp.decoding.step import Call
from jax_probe_mtp.decoding.trace import draw
from jax_probe_mtp.decoding.verify import Accepted
from jax_probe_mtp.drafting import Ngram, Probe
from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.tree import Tree

WORDS = ["the", " cat", " dog", " sat", "\n", " ran", " no"]


def drawn(source, node_P, token_P, num_accepted, owner_BO=None):
    """Draws the second of two rows: the (cat (ran), dog), and a node without a draft."""
    tree = Tree(
        token_BN=jnp.array([[6, 6, 6, 6, 6], [0, 1, 2, 5, NO_TOKEN]]),
        parent_BN=jnp.array([[-1, 0, 0, 0, 0], [-1, 0, 0, 1, 0]]),
        depth_BN=jnp.array([[0, 1, 1, 1, 1], [0, 1, 1, 2, 1]]),
        score_BN=jnp.log(jnp.array([[1, 0.9, 0.9, 0.9, 0.9], [1, 0.5, 0.251, 0.1, 0]])),
        kind_BN=jnp.zeros((2, 5), jnp.int32),
    )
    accepted = Accepted(
        node_BP=jnp.array([[0, 0, 0], node_P]),
        token_BP=jnp.array([[6, 6, 6], token_P]),
        num_accepted_B=jnp.array([0, num_accepted]),
    )
    call = Call(tree=tree, owner_BO=owner_BO, accepted=accepted, num_new_B=jnp.array([1, num_accepted + 1]))
    return draw(call, source, WORDS.__getitem__, row=1).splitlines()


def test_nothing_is_accepted_and_nothing_owns_a_mask():
    assert drawn(Ngram(4), [0, 0, 0], [3, 3, 3], 0) == [
        "'the'             root",
        "  ' cat'    0.50  ngram",
        "    ' ran'  0.10  ngram",
        "  ' dog'    0.25  ngram",
        "  ' sat'          bonus",
    ]


def test_one_draft_is_accepted_and_some_nodes_own_masks():
    assert drawn(Probe(widths=(4,)), [0, 1, 1], [1, 4, 4], 1, owner_BO=jnp.array([[0, 0], [2, 1]])) == [
        "'the'             root",
        "  ' cat'    0.50  probe  accepted, owns a mask",
        "    ' ran'  0.10  probe",
        "    '\\n'          bonus",
        "  ' dog'    0.25  probe  owns a mask",
    ]


def test_all_nodes_own_masks_where_no_owners_are_named():
    assert drawn(Probe(widths=(4,)), [0, 1, 3], [1, 5, 3], 2) == [
        "'the'               root   owns a mask",
        "  ' cat'      0.50  probe  accepted, owns a mask",
        "    ' ran'    0.10  probe  accepted, owns a mask",
        "      ' sat'        bonus",
        "  ' dog'      0.25  probe  owns a mask",
    ]

"""The contract of a draft source as a function: what the decode loop relies on, and no source may break."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates, Children, Paths
from jax_probe_mtp.drafting.shown import FinishedCall, Model, PromptChunk, Prompts, ReadPrompts, Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState, check_is_source
from jax_probe_mtp.drafting.tree import Tree, build_tree
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.params import random_params
from jax_probe_mtp.model.transformer import full_forward

# Rows of the batches that are tried: of other sizes, which shows where B is, and in another order, so that no row that is
# in both has the same rows around it.
ROWS = ((0, 1, 2), (2, 1))
PROMPT = 9  # tokens
CALLS = 3
Round = tuple[SourceState, Candidates]


def check_source(source: DraftSource, cfg: ModelConfig) -> None:
    """Runs a source through a few calls on random logits, with and without `jax.jit`, and checks all that it gives.

    Sizes and kinds; shapes and dtypes; a B in front of every array of `rows`; states that keep their structure; parents
    before children, a score never above its parent's; rows that depend on themselves alone, unless through `shared`;
    `shared` that changes only where `learns_shared` says so; masks, owners and children where the source has some.
    The model is a small one of random values with `cfg`'s vocabulary, its rows are greedy, and no draft is accepted.

    Raises:
      ValueError: one line that says what is wrong where.
    """
    check_is_source(source)
    name = type(source).__name__
    with _named(name):
        _check_sizes(source)
        small = dataclasses.replace(
            cfg, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_width=4, rope_divisors=()
        )
        source.check(small, PROMPT)
        model = Model(random_params(small, jax.random.key(0)), small)
        first, second = (_run(source, model, rows, jax.jit) for rows in ROWS)
        without_jit = _run(source, model, ROWS[0], lambda function: function)
        _same(
            [c for _, c in first],
            [c for _, c in without_jit],
            "with and without jax.jit its candidates differ",
        )
        for (three, _), (two, _) in zip(first, second, strict=True):
            shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], state.rows) for state in (three, two)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"rows has shapes {shapes[0]} behind B with {len(ROWS[0])} rows, {shapes[1]} with {len(ROWS[1])}."
                )
        if not source.learns_shared:
            for i, ((three, c3), (two, c2)) in enumerate(zip(first, second, strict=True)):
                cut = jax.tree.map(lambda leaf: leaf[np.asarray(ROWS[1])], (three.rows, c3))
                _same(cut, (two.rows, c2), f"after {i} calls a row depends on its neighbours")


def _check_sizes(source: DraftSource) -> None:
    hash(source)
    for name, least in (("num_candidates", 0), ("max_depth", 0), ("num_nodes", 1), ("num_masks", 0)):
        value = getattr(source, name, None)
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if source.num_nodes > 1 + source.num_candidates:
        raise ValueError(f"num_nodes {source.num_nodes} is more than the root and {source.num_candidates} candidates.")
    if source.num_owners is not None and not 1 <= source.num_owners <= source.num_nodes:
        raise ValueError(f"num_owners must be 1 to {source.num_nodes}, the nodes, or None, got {source.num_owners!r}.")
    if not source.kinds or not all(isinstance(kind, str) for kind in source.kinds):
        raise ValueError(f"kinds must be at least one text, got {source.kinds!r}.")


def _run(source: DraftSource, model: Model, rows: tuple[int, ...], jit: Callable[[Any], Any]) -> list[Round]:
    """Makes `CALLS` calls of these rows, checks each, and gives the state before each and its candidates."""
    V, B, row_B = model.cfg.vocab_size, len(rows), np.asarray(rows)
    draw = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:  # the same for a row in any batch
        return draw.normal(size=(len(ROWS[0]), *shape)).astype(np.float32)[row_B]

    def ids(*shape: int) -> np.ndarray:
        return draw.integers(0, V, (len(ROWS[0]), *shape)).astype(np.int32)[row_B]

    T = PROMPT + CALLS * (source.max_depth + 1) + B  # each batch is padded otherwise, on which no state may depend
    token_BT = ids(T + len(ROWS[0]) - B)[:, :T]  # the same for a row in any batch
    length_B = np.asarray([PROMPT, PROMPT - 3, PROMPT - 1], np.int32)[row_B]
    token_BT %= max(2, V // 4)  # so that tokens come again
    prompts = Prompts(
        token_BT=jnp.asarray(token_BT),
        length_B=jnp.asarray(length_B),
        seed_B=jnp.asarray(row_B, jnp.uint32),
        capacity=PROMPT + CALLS * (source.max_depth + 1),
    )

    def begin(params: Any, prompts: Prompts, hidden_BUD: jax.Array) -> tuple[SourceState, SourceState]:
        bound = Model(params, model.cfg)
        state = source.start(bound, prompts, source.init_shared(model.cfg))
        is_used_BU = jnp.arange(PROMPT)[None] < prompts.length_B[:, None] - 1
        chunk = PromptChunk(
            model=bound,
            token_BU=prompts.token_BT[:, :PROMPT],
            before_BU=jnp.pad(prompts.token_BT[:, : PROMPT - 1], ((0, 0), (1, 0)), constant_values=NO_TOKEN),
            is_used_BU=is_used_BU,
            hidden_BUD=hidden_BUD,
            sampling=None,
        )
        _, cache = full_forward(params, model.cfg, prompts.token_BT)
        read = ReadPrompts(model=bound, token_BT=prompts.token_BT, length_B=prompts.length_B, cache=cache)
        return state, source.try_masks(source.read(state, chunk), read)

    def learn(
        params: Any, state: SourceState, tree: Tree, logits_BRV: jax.Array, owner_BO: Any, root_B: jax.Array
    ) -> Any:
        P = source.max_depth + 1
        call = FinishedCall(
            model=Model(params, model.cfg),
            tree=tree,
            logits=Logits.of(logits_BRV),
            num_masks=source.num_masks,
            owner_BO=owner_BO,
            node_BP=jnp.zeros((B, P), jnp.int32),
            num_accepted_B=jnp.zeros(B, jnp.int32),
            new_token_BP=jnp.take_along_axis(prompts.token_BT, root_B[:, None] + 1 + jnp.arange(P)[None], axis=1),
            num_new_B=jnp.ones(B, jnp.int32),
            root_position_B=root_B + 1,
            sampling=None,
        )
        return source.learn(state, call)

    functions = begin, source.propose, source.owners, learn
    jit_begin, jit_propose, jit_owners, jit_learn = map(jit, functions)  # each is compiled once
    first, state = jit_begin(model.params, prompts, jnp.asarray(drawn(PROMPT, model.cfg.width)))
    _check_state(source, first, "start", B)
    _check_kept(source, first, state, "read")
    rounds = []
    for number in range(CALLS):
        root_B = jnp.asarray(length_B - 1 + number)
        text = Text(token_BT=prompts.token_BT, root_position_B=root_B)
        candidates = jit_propose(state, text)
        _check_candidates(source, candidates, B, V)
        tree = build_tree(text.root_B, candidates, source.num_nodes)
        owner_BO = None
        if source.num_masks:
            _check_array("masks", source.masks(state), (B, source.num_masks, model.cfg.width), jnp.float32)
            if source.num_owners is not None:
                owner_BO = jit_owners(state, tree)
                _check_array("owners", owner_BO, (B, source.num_owners), jnp.int32)
                if not bool(jnp.all((owner_BO >= 0) & (owner_BO < source.num_nodes))):
                    raise ValueError(f"owners must be nodes 0 to {source.num_nodes - 1}, got {owner_BO.tolist()}.")
        _check_children(source, state, text, B, V)
        rounds.append((state, candidates))
        before, state = (
            state,
            jit_learn(model.params, state, tree, jnp.asarray(drawn(source.num_rows, V)), owner_BO, root_B),
        )
        _check_kept(source, before, state, "learn")
    return rounds


def _check_state(source: DraftSource, state: SourceState, where: str, B: int) -> None:
    if type(state) is not SourceState:
        raise ValueError(f"{where} must give a SourceState, got {type(state).__name__}.")
    if source.learns_shared:
        with _named("shared is learned, but has arrays without 1 in front, for one group of devices"):
            chex.assert_tree_shape_prefix(state.shared, (1,))
    with _named(f"{where} gives rows without B = {B} in front"):
        chex.assert_tree_shape_prefix(state.rows, (B,))


def _check_kept(source: DraftSource, before: SourceState, after: SourceState, where: str) -> None:
    with _named(f"{where} changes the state's structure, shapes or dtypes"):
        chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    if not source.learns_shared:
        _same(before.shared, after.shared, f"{where} changes shared, but learns_shared is False")


def _check_candidates(source: DraftSource, candidates: Candidates, B: int, V: int) -> None:
    P = source.num_candidates
    if type(candidates) is not Candidates:
        raise ValueError(f"propose must give Candidates, such as chain(token_BP), got {type(candidates).__name__}.")
    if getattr(candidates.token_BP, "shape", None) != (B, P):
        shape = getattr(candidates.token_BP, "shape", None)
        raise ValueError(f"propose must give [B, num_candidates] = {[B, P]} tokens, got {shape}; say num_candidates.")
    for name, dtype in (
        ("token", "int32"),
        ("parent", "int32"),
        ("depth", "int32"),
        ("score", "float32"),
        ("kind", "int32"),
    ):
        _check_array(f"propose gives {name}_BP", getattr(candidates, f"{name}_BP"), (B, P), dtype)
    if candidates.note_BP is not None:
        _check_array("propose gives note_BP", candidates.note_BP, (B, P), "int32")
    got = jax.tree.map(np.asarray, candidates)
    row_B1, place_P = np.arange(B)[:, None], np.arange(P)
    is_child = got.parent_BP != NO_PARENT
    above = np.where(is_child, got.parent_BP, 0)
    rules = {
        f"a token is none of -1 to {V - 1}": (got.token_BP < NO_TOKEN) | (got.token_BP >= V),
        "a parent does not come before its child": (got.parent_BP < NO_PARENT)
        | (is_child & (got.parent_BP >= place_P)),
        f"a kind is none of {len(source.kinds)}": (got.kind_BP < 0) | (got.kind_BP >= len(source.kinds)),
        "a score is no log-probability": ~(got.score_BP <= 0),
        "without a token the score is not -inf": (got.token_BP == NO_TOKEN) & (got.score_BP != -np.inf),
    }
    if P:
        above = np.minimum(above, P - 1)
        rules |= {
            "a depth is not one more than the parent's": got.depth_BP
            != np.where(is_child, got.depth_BP[row_B1, above] + 1, 1),
            f"a depth is above max_depth {source.max_depth}": got.depth_BP > source.max_depth,
            "a score is above its parent's": is_child & (got.score_BP > got.score_BP[row_B1, above]),
        }
    for rule, is_broken in rules.items():
        if np.any(is_broken):
            row, place = np.argwhere(is_broken)[0]
            raise ValueError(f"propose: {rule} (row {row}, candidate {place}: {_candidate(got, row, place)}).")


def _candidate(got: Candidates, row: int, place: int) -> str:
    values = {name: getattr(got, f"{name}_BP")[row, place] for name in ("token", "parent", "depth", "score", "kind")}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _check_children(source: DraftSource, state: SourceState, text: Text, B: int, V: int) -> None:
    """Asks for the children of the root, then of two of those."""
    paths = Paths(token_BWL=text.root_B[:, None, None])
    for _ in range(2):
        children: Children | None = source.children(state, text, paths)
        if children is None:
            return
        W, C = paths.token_BW.shape[1], children.token_BWC.shape[-1]
        _check_array("children gives token_BWC", children.token_BWC, (B, W, C), jnp.int32)
        _check_array("children gives feature_BWCf", children.feature_BWCf, (B, W, C, None), jnp.float32)
        if bool(jnp.any((children.token_BWC < NO_TOKEN) | (children.token_BWC >= V))):
            raise ValueError(f"children: a token is none of -1 to {V - 1}.")
        next_BW = children.token_BWC[:, 0, :2]
        above_BWL = jnp.broadcast_to(paths.token_BWL[:, :1], (*next_BW.shape, paths.token_BWL.shape[2]))
        paths = Paths(token_BWL=jnp.concatenate([above_BWL, next_BW[..., None]], axis=2))


def _check_array(what: str, array: Any, shape: tuple[int | None, ...], dtype: Any) -> None:
    with _named(what):
        chex.assert_shape(array, shape)
        chex.assert_type(array, dtype)


def _same(one: Any, other: Any, what: str) -> None:
    try:
        chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)
    except AssertionError:
        raise ValueError(f"{what}.") from None


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Says in one line what went wrong where, whatever a source or chex raised."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {one_line(error)}") from None

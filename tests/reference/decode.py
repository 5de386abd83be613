"""The decode loop, written once for all sources, one row at a time; and plain decoding without it."""

import numpy as np

from reference.merged import Learned, Merged
from reference.sampling import own_next, own_scores
from reference.sources import Ngram, Probe, Recycle
from reference.trees import NO_TOKEN


def plain_decode(model, prompt, *, max_new_tokens, eos=(), **draw):
    """Plain decoding: the whole text through the model for every token. Returns tokens and the smallest top-two gap."""
    text, gap = list(prompt), np.inf
    for _ in range(max_new_tokens):
        score = own_scores(model, text, **draw)
        second, best = np.sort(score)[-2:]
        gap = min(gap, best - second)
        text.append(int(np.argmax(score)))
        if text[-1] in eos:
            break
    return text[len(prompt) :], gap


def turns(model, prompt, source, *, max_new_tokens, eos=(), **draw):
    """Decodes one row. Yields where rows that share what they learn wait for each other.

    All learn from their prompts but the last token, all from the call of the last, all draft, all learn from that call,
    and so on.

    Returns:
      Tokens, the tree of each call, the drafts accepted in each call.
    """
    source.read(prompt)
    yield
    new = [own_next(model, prompt, **draw)]
    source.learn(prompt, [(prompt[-1], -1, 0)], [0], new[:])
    trees, accepted = [], []
    while len(new) < max_new_tokens and new[-1] not in eos:
        yield
        text = [*prompt, *new]
        nodes = source.draft(text)
        path, committed = walk(model, nodes, text, **draw)
        trees.append(nodes)
        accepted.append(len(committed) - 1)
        yield
        emit(new, committed, max_new_tokens, eos)
        source.learn(text, nodes, path, [*prompt, *new][len(text) :])  # not what is cut at the end of the text
    return new, trees, accepted


def decode_together(rows):
    """Takes the turns of several rows one after the other, and gives what each returns."""
    results, rows = {}, dict(enumerate(rows))
    num_rows = len(rows)
    while rows:
        for row, its_turns in list(rows.items()):
            try:
                next(its_turns)
            except StopIteration as end:
                results[row] = end.value
                del rows[row]
    return [results[row] for row in range(num_rows)]


def walk(model, nodes, text, **draw):
    """The nodes that hold the model's own next tokens, the root first; and those tokens with the one after them."""
    path, committed = [0], [own_next(model, text, **draw)]
    while True:
        child = [i for i, (token, parent, _) in enumerate(nodes) if parent == path[-1] and token == committed[-1]]
        if not child:
            return path, committed
        path.append(child[0])
        committed.append(own_next(model, [*text, *committed], **draw))


def emit(new, committed, max_new_tokens, eos):
    for token in committed:
        if len(new) < max_new_tokens and new[-1] not in eos:
            new.append(token)


def without_padding(nodes):
    """Of a node without a token its place in the list: where it hangs means nothing."""
    return [NO_TOKEN if node[0] == NO_TOKEN else node for node in nodes]


def probe_decode(model, prompt, probe, *, mask_ema=0.1, rank_with_noise=True, owners=None, **settings):
    """The whole method for one row: tokens, the tree of each call, the drafts accepted in each call.

    Args:
      probe, owners: of `Probe`.
      settings: max_new_tokens, eos and how to draw.
    """
    source = Probe(
        model, prompt, probe, mask_ema=mask_ema, rank_with_noise=rank_with_noise, owners=owners, draw=settings
    )
    return decode_together([turns(model, prompt, source, **settings)])[0]


def ngram_decode(model, prompt, *, num_drafts, max_ngram, match, **settings):
    """Prompt lookup for one row: tokens, the tree of each call, the drafts accepted in each call."""
    source = Ngram(num_drafts=num_drafts, max_ngram=max_ngram, match=match)
    return decode_together([turns(model, prompt, source, **settings)])[0]


def recycle_batch(model, prompts, table, row_settings, *, num_nodes, max_depth=None, **settings):
    """Rows that share a table.

    Args:
      table: token -> successors, goes on from what it holds.
      row_settings: for each row what it alone has, such as its seed.

    Returns:
      For each row tokens, the tree of each call, the drafts accepted in each call; the table; and the smallest gap that
      decided a rank or a tree: below rounding's reach it proves nothing.
    """
    table, sources, rows = dict(table), [], []
    for prompt, own in zip(prompts, row_settings, strict=True):
        both = settings | own
        temperature = both.get("temperature", 0.0)
        sources.append(Recycle(model, table, num_nodes=num_nodes, max_depth=max_depth, temperature=temperature))
        rows.append(turns(model, prompt, sources[-1], **both))
    return decode_together(rows), table, min(gap for source in sources for gap in source.gaps)


def recycle_decode(model, prompt, *, table=None, num_nodes, max_depth=None, **settings):
    """Token Recycling for one row: its tokens, trees and accepted counts, the table after it, the smallest gap.

    Args:
      table: what a warm run goes on with.
      num_nodes: a number or "static80".
      settings: max_new_tokens, eos and how to draw.
    """
    [row], table, gap = recycle_batch(
        model, [prompt], table or {}, [settings], num_nodes=num_nodes, max_depth=max_depth
    )
    return *row, table, gap


def merged_batch(
    model, prompts, learned, row_settings, *, num_rows, mask_owners, max_depth=8, mask_init="mean", **settings
):
    """Rows of merged drafts, which share what they learn where all have the same `Learned`.

    Args:
      learned: one a row.
      row_settings: for each row what it alone has, such as its seed.

    Returns:
      For each row tokens, the tree of each call, the drafts accepted in each call; and the smallest gap that decided a rank.
    """
    shape = {"tree": (24,), "num_masks": 1, "block_complexity": None, "prune": True}
    sources, rows = [], []
    for prompt, of_row, own in zip(prompts, learned, row_settings, strict=True):
        both = settings | own
        masks = shape | {"mask_init": mask_init, "mask_offset": 0.0}
        ema = 0.1 if mask_init == "mean" else 0.0
        probe = Probe(model, prompt, masks, mask_ema=ema, draw=both) if mask_owners else None
        sources.append(
            Merged(
                model,
                of_row,
                rows=num_rows,
                mask_owners=mask_owners,
                probe=probe,
                max_depth=max_depth,
                temperature=both.get("temperature", 0.0),
            )
        )
        rows.append(turns(model, prompt, sources[-1], **both))
    return decode_together(rows), min(gap for source in sources for gap in source.gaps)


def merged_decode(model, prompt, *, weights, capacity, **how):
    """A merged draft for one row that learns from nothing else: tokens, trees, accepted counts, the smallest gap."""
    learned = Learned(weights, **Learned.sizes_of_row(capacity, len(model.p["embed"])))
    [row], gap = merged_batch(model, [prompt], [learned], [{}], **how)
    return *row, gap

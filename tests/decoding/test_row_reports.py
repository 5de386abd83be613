"""What a few calls of a batch whose rows come and go report to the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.decoding.row_batches import A, B, C, Q, RowBatch, bits, copy_of, of_reference

from jax_probe_mtp.decoding.request import Request


def lengths_after_calls(tiny, text):
    """Committed slots after the prefill's call and each of the others, to the end."""
    tokens, accepted = of_reference(tiny, "probe", text)
    lengths = [len(text.prompt)]
    for count in accepted:
        lengths.append(min(lengths[-1] + count + 1, len(text.prompt) + len(tokens) - 1))
    assert lengths[-1] == len(text.prompt) + len(tokens) - 1
    return lengths


@pytest.fixture(scope="module")
def probe_rows(tiny):
    """Rows 0 and 2 with a text before their first call, row 1 empty; and their lengths after each call."""
    batch = RowBatch(tiny, "probe")
    batch.admit(0, A)
    batch.admit(2, C)
    return batch, {0: lengths_after_calls(tiny, A), 2: lengths_after_calls(tiny, C)}


def _expected_lengths(lengths, first, num_calls):
    num_made = min(num_calls, max(map(len, lengths.values())) - first)
    return [
        [lengths[row][min(i, len(lengths[row]) - 1)] if row in lengths else 0 for i in range(first, first + num_made)]
        + [-1] * (num_calls - num_made)
        for row in range(B)
    ]


def test_reports_say_what_each_call_gave(probe_rows, tiny):
    batch, lengths = probe_rows
    assert len(lengths[0]) != len(lengths[2]), "choose texts of unequal numbers of calls"
    batch, first = copy_of(batch), 0
    given = {0: [], 2: []}
    before = {0: len(A.prompt) - 1, 2: len(C.prompt) - 1}
    while first < max(map(len, lengths.values())):
        report = batch.run()
        assert report.length_BQ.tolist() == _expected_lengths(lengths, first, Q)
        for row in (0, 2):
            num_new = int(report.length_BQ[row].max()) - before[row]
            before[row] += num_new
            given[row] += report.token_BU[row, :num_new].tolist()
            place = slice(before[row] - num_new + 1, before[row] + 1)
            assert bits(report.logprob_BU[row, :num_new]) == bits(batch.state.logprob_BT[row, place])
        first += Q
        assert report.is_done_B.tolist() == [first >= len(lengths[0]), True, first >= len(lengths[2])]
    assert np.any(report.length_BQ == -1), "the last chunk was full: choose another number of calls"
    for row, text in ((0, A), (2, C)):
        tokens, accepted = of_reference(tiny, "probe", text)
        assert given[row] == tokens == batch.new_tokens(row)
        assert report.calls_B[row] == len(accepted)
        assert report.accepted_by_depth_BX[row].tolist() == [sum(n > d for n in accepted) for d in range(2)]

    report = batch.run()  # nobody is left
    assert np.all(np.asarray(report.length_BQ) == -1)


def test_chunks_of_one_call_are_one_of_as_many(probe_rows):
    batch, _ = probe_rows
    ones, together = copy_of(batch), copy_of(batch)
    for _ in range(Q):
        ones.run(1)
    together.run(Q)
    for one, other in zip(jax.tree.leaves(ones.state), jax.tree.leaves(together.state), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            np.testing.assert_array_equal(one, other)
    [whole] = together.reports
    np.testing.assert_array_equal(np.concatenate([one.length_BQ for one in ones.reports], axis=1), whole.length_BQ)
    for row, text in ((0, A), (2, C)):
        lengths, tokens = [len(text.prompt) - 1, *whole.length_BQ[row].tolist()], []
        for report, new in zip(ones.reports, np.diff(lengths), strict=True):
            tokens += report.token_BU[row, :new].tolist()
        assert tokens == whole.token_BU[row, : lengths[-1] - lengths[0]].tolist()


def test_a_stopped_row_ends_and_the_others_do_not_notice(probe_rows):
    batch, lengths = probe_rows
    batch = copy_of(batch)
    batch.run()
    assert min(map(len, lengths.values())) > 2 * Q, "a text ends too soon: choose others"
    going_on, stopped = copy_of(batch), copy_of(batch)
    free = going_on.run()
    report = stopped.run(stopped=[0])
    assert report.length_BQ.tolist() == [[lengths[0][Q - 1]] * Q, [0] * Q, lengths[2][Q : 2 * Q]]
    assert report.is_done_B.tolist() == [True, True, False]
    assert not free.is_done_B[0]
    assert stopped.outcome(0) == batch.outcome(0)
    assert stopped.outcome(2) == going_on.outcome(2) != batch.outcome(2)
    report = stopped.run(stopped=[2])  # the first one stays stopped, so no call is left to make
    assert report.length_BQ.tolist() == [[-1] * Q] * B
    assert np.all(report.is_done_B)


def test_empty_rows_have_nothing_to_do(tiny):
    batch = RowBatch(tiny, "probe")
    assert isinstance(batch.request, Request)
    assert np.all(batch.state.is_done_B)
    assert not np.any(batch.state.length_B)
    report = batch.run()
    assert report.length_BQ.tolist() == [[-1] * Q] * B
    assert report.is_done_B.tolist() == [True] * B

"""Scalings of rope, by hand."""

import math

import pytest

from checkpoints_convert.mapping.rope import linear_divisors, llama3_divisors, yarn_divisors, yarn_scale


def test_llama3_divisors_by_hand():
    # theta = e^8 and h = 4: wavelengths 2 pi and 2 pi e^4 = 343.05. With 686.1 = 2 waves trained, low 1 and high 4, the
    # second blends with weight (2 - 1) / (4 - 1) = 1/3, so it is divided by 1 / (2/3/8 + 1/3) = 2.4.
    divisors = llama3_divisors(
        math.e**8, 4, factor=8, low_freq_factor=1, high_freq_factor=4, trained_length=2 * 2 * math.pi * math.e**4
    )
    assert divisors == pytest.approx((1.0, 2.4), rel=1e-9)
    # With half a wave trained, the second is long and takes the whole factor.
    divisors = llama3_divisors(
        math.e**8, 4, factor=8, low_freq_factor=1, high_freq_factor=4, trained_length=math.pi * math.e**4
    )
    assert divisors[1] == pytest.approx(8)


def yarn(trained_length, **more):
    how = {"factor": 4, "beta_fast": 16.0, "beta_slow": 1.0, "truncates": True, "where": "x"} | more
    return yarn_divisors(2.0**8, 16, trained_length=trained_length, **how)


def test_yarn_divisors_by_hand():
    """theta = 2^8 and h = 16: pair i turns once in 2 pi 2^i positions, so 16 times as often as pair i + 4."""
    turns_once = 2 * math.pi * 2**6  # of pair 6
    # Pairs 2 to 6 are blended: by 0, 1/4, 1/2, 3/4 and 1 of the factor 4, 1 / (blend / 4 + 1 - blend).
    blended = (1, 1 / (3 / 4 + 1 / 16), 1 / (1 / 2 + 1 / 8), 1 / (1 / 4 + 3 / 16), 4)
    assert yarn(turns_once) == pytest.approx((1, 1, *blended, 4), rel=1e-6)
    # A little longer: from 2.1 to 6.1, which are 2 to 7 where whole pairs are meant.
    assert yarn(turns_once * 2**0.1)[2:4] == pytest.approx((1, 1 / (0.8 + 0.2 / 4)), rel=1e-6)
    assert yarn(turns_once * 2**0.1, truncates=False)[3] == pytest.approx(1 / (1 - 0.225 + 0.225 / 4), rel=1e-6)
    # So short that no pair turns 16 times: the blend begins at pair 0.
    assert yarn(2 * math.pi * 2**2)[:3] == pytest.approx((1, 1 / (1 / 2 + 1 / 8), 4), rel=1e-6)


def test_yarn_scale_by_hand():
    assert yarn_scale(math.e) == pytest.approx(1.1)
    assert yarn_scale(math.e**2, 0.5) == pytest.approx(1.1)
    assert yarn_scale(1.0) == 1


def test_linear_divisors():
    assert linear_divisors(4.0, 8) == (4.0,) * 4
    assert linear_divisors(1.0, 8) == ()

"""Llama 3.1's scaling of rope, by hand."""

import math

import pytest

from checkpoints_convert.mapping.rope import llama3_divisors


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

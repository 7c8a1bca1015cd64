"""The shapes that steps are compiled for: everything fits, and random batches fill them well."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.data.batch_shapes import (
    length_buckets,
    padded_shapes,
    row_buckets,
    step_shapes,
    unpadded_shapes,
)


@pytest.mark.parametrize(("batch", "rows"), [(1, (1,)), (3, (3,)), (4, (2, 4)), (16, (8, 16))])
def test_row_buckets_are_a_half_and_a_full_batch(batch, rows):
    assert row_buckets(batch) == rows


def test_padded_shapes_fit_every_text():
    assert padded_shapes((2, 4), (8, 16)) == ((2, 8, 16), (2, 16, 32), (4, 8, 32), (4, 16, 64))


def fits(shapes, rows, longest, tokens):
    return [s for s in shapes if s.rows >= rows and s.length >= longest and s.tokens >= tokens]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    by_length=st.booleans(),
)
@settings(deadline=None)
def test_every_batch_fits_one_of_the_shapes(lengths, batch, by_length):
    length = np.array(lengths)
    buckets = length_buckets(length, longest=int(length.max()))
    shapes = unpadded_shapes(length, buckets, batch=batch, by_length=by_length)
    assert (batch, buckets[-1], batch * buckets[-1]) in shapes
    assert len(shapes) <= 3 * len(row_buckets(batch)) and len(set(shapes)) == len(shapes)
    for rows in row_buckets(batch):
        own = [s for s in shapes if s.rows == rows]
        assert fits(own, rows, buckets[-1], rows * buckets[-1]), "the longest texts there are"
        # The first that fits is the smallest that fits.
        assert [s.tokens for s in own] == sorted(s.tokens for s in own)
        assert [s.length for s in own] == sorted(s.length for s in own)
        assert all(s.tokens <= s.rows * s.length for s in own)


def test_random_batches_have_little_padding():
    """Texts of 20 to 100 tokens: 0.59 of a padded batch is text."""
    rng = np.random.default_rng(3)
    length = rng.integers(20, 101, 4000)
    shapes = unpadded_shapes(length, length_buckets(length, longest=100), batch=16)
    room = text = padded = 0
    for _ in range(300):
        own = rng.choice(length, 16)
        chosen = fits(shapes, 16, own.max(), own.sum())[0]
        room, text, padded = room + chosen.tokens, text + own.sum(), padded + 16 * own.max()
    assert text / padded < 0.65 and text / room > 0.88


def test_shapes_do_not_depend_on_the_sampled_examples():
    """Otherwise every seed of a comparison would compile again."""
    draws = [
        np.random.default_rng(k).normal(50, 12, 3000).astype(int).clip(5, 64) for k in range(5)
    ]
    assert len({unpadded_shapes(x, (48, 64), batch=16) for x in draws}) == 1


@pytest.mark.parametrize("by_length", [False, True])
def test_step_shapes_are_those_of_the_length_buckets(by_length):
    length = np.random.default_rng(0).integers(3, 90, 200)
    options = {"longest": 96, "buckets": 3, "batch": 16, "by_length": by_length}
    lengths, padded = step_shapes(length, **options)
    assert lengths == length_buckets(length, longest=96, most=3) and lengths[-1] == 96
    assert padded == padded_shapes((8, 16), lengths)
    same, unpadded = step_shapes(length, **options, unpadded=True)
    assert same == lengths
    assert unpadded == unpadded_shapes(length, lengths, batch=16, by_length=by_length) != padded


@pytest.mark.parametrize("unpadded", [False, True])
def test_limit_of_one_shape_keeps_full_and_half_batches_of_one_length(unpadded):
    length = np.random.default_rng(0).integers(3, 90, 200)
    lengths, shapes = step_shapes(
        length, longest=96, buckets=3, batch=16, unpadded=unpadded, most=1
    )
    assert lengths == (96,)
    assert shapes == padded_shapes((8, 16), (96,))

"""Predictions over a data set: the same with and without computing padding."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import federated
from fedjax_lora.core.types import ClientParams
from fedjax_lora.data import Tokens
from fedjax_lora.evaluation import predict as prediction
from tests._helpers import problems

BATCH, LENGTHS = 6, (8,)
"""Texts of 2 to 16 tokens: those longer than 8 are longer than every length of the training."""


def params() -> prediction.AdaptedParams:
    made = problems.encoder()
    adapter = problems.random_adapter(made.spec, 0)
    gain = {t.path: jnp.ones((*t.stack, problems.R)) for t in made.spec.targets}
    return prediction.AdaptedParams(made.base, ClientParams(adapter, made.head), gain)


def test_texts_without_their_padding_have_the_outputs_of_padded_ones():
    """In the order of the data; one program for each length, of the tokens that a batch needs."""
    made, rows = problems.encoder(), []
    objective = federated.text_classification(made.module, LENGTHS, unpadded=True)

    def outputs(base, trained, gain, batch):
        rows.append((batch.ids.shape, len(batch.at)))
        return objective.outputs(base, trained, gain, batch)

    predict = prediction.make_predict(objective._replace(outputs=outputs), batch=BATCH)
    got, again = predict(params(), made.data), predict(params(), made.data)
    np.testing.assert_array_equal(got, again)
    whole = objective.take(made.data, jnp.arange(len(got)), problems.WIDTH)
    base, trained, gain = params()
    want = jax.jit(objective.outputs)(base, trained, gain, whole)
    np.testing.assert_allclose(got, want, atol=problems.MODE_TOLERANCE)
    length = np.asarray(made.data.length)
    assert [shape for shape, _ in rows] == [(BATCH, 8), (BATCH, int(length.max()))]
    for ((_, padded), tokens), own in zip(rows, (length[length <= 8], length[length > 8]),
                                          strict=True):  # fmt: skip
        most = np.ceil(len(own) / BATCH)
        # The fullest batch may have a text more than the mean one; sizes are multiples of 8.
        assert tokens < own.sum() / most + padded + 8 <= BATCH * padded


def test_a_batch_that_is_not_full_is_predicted_as_a_full_one():
    made = problems.encoder()
    objective = federated.text_classification(made.module, LENGTHS, unpadded=True)
    predict = prediction.make_predict(objective, batch=4)
    five = Tokens(*(np.resize(x[:1], (5, *x.shape[1:])) for x in made.data))
    got = predict(params(), five)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, np.broadcast_to(got[:1], got.shape), atol=1e-6)

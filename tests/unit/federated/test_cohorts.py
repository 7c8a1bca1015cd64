"""The pieces of a loop of one's own: cohorts, initial state, global parameters, refusals."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lora as fl
from fedjax_lora.core.errors import InputError
from tests._helpers.problems import assert_same_bits, changed, copy

NET = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(4)])
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(40, 5)).astype(np.float32),
    "y": RNG.integers(4, size=40).astype(np.int32),
}
ROWS = RNG.integers(40, size=(2, 3, 4)).astype(np.int32)  # 2 clients, 3 steps of 4 examples
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss_fn(apply: Any, batch: Any, key: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch["x"]), batch["y"])


def params() -> Any:
    return NET.init(KEY, DATA["x"][:1])["params"]


def method_of(name: str = "masked_mean", targets: str = "layers_0") -> fl.methods.Method:
    return fl.methods.make(name, fl.lora.make_spec(params(), targets=targets, rank=4))


def train(**options: Any) -> fl.federated.LocalTraining:
    return fl.federated.local_training(NET, loss_fn, optax.sgd(0.1), **options)


def cohort(**changes: Any) -> fl.federated.RoundInput:
    given = {"ids": [5, 2], "ranks": [1, 4], "weights": 4.0, "batches": ROWS, "data": DATA}
    return fl.federated.cohort(**(given | {"round": 0} | changes))


def test_batches_of_examples_equal_batches_of_row_numbers():
    method = method_of()
    step = fl.federated.make_round(method, train())
    by_rows = step(params(), fl.federated.init(method, params(), KEY, num_clients=6), cohort())
    examples = jax.tree.map(lambda x: x[ROWS], DATA)
    state = fl.federated.init(method, params(), KEY, num_clients=6)
    by_value = step(params(), state, cohort(batches=examples, data=None))
    assert_same_bits(copy(by_rows[0].server), copy(by_value[0].server))


def test_clients_take_no_step_after_their_last_example():
    short = np.where(np.arange(3)[None, :, None] < np.array([1, 3])[:, None, None], ROWS, -1)
    plan = cohort(batches=short).plan
    assert plan.batches.steps.tolist() == [1, 3]
    assert plan.batches.valid.sum(axis=(1, 2)).tolist() == [4, 12]
    assert plan.batches.index.min() >= 0


def test_learning_rate_factor_scales_the_updates():
    method = method_of()
    step = fl.federated.make_round(method, train())
    state, _ = step(
        params(), fl.federated.init(method, params(), KEY, num_clients=6), cohort(rate=0.0)
    )
    before = fl.federated.init(method, params(), KEY, num_clients=6)
    assert_same_bits(copy(state.server.adapter), copy(before.server.adapter))


@pytest.mark.parametrize("heads", ["average", "local", "frozen"])
def test_parameters_matching_the_pattern_are_fully_trained(heads: fl.federated.Head):
    method = method_of()
    state = fl.federated.init(
        method, params(), KEY, num_clients=6, fully_trained="^layers_2/", heads=heads
    )
    step = fl.federated.make_round(method, train(), heads=heads)
    state, _ = step(params(), state, cohort())
    after = fl.federated.global_params(method, params(), state)
    assert changed(after["layers_2"], params()["layers_2"]) == (heads == "average")
    assert changed(after["layers_0"]["kernel"], params()["layers_0"]["kernel"])
    assert not changed(after["layers_0"]["bias"], params()["layers_0"]["bias"])
    if heads == "local":
        own = state.clients.head["layers_2"]["kernel"] - params()["layers_2"]["kernel"][None]
        moved = np.abs(np.asarray(own)).max(axis=(1, 2)) > 0
        assert moved.tolist() == [n in (2, 5) for n in range(6)]


def test_parameters_passed_by_the_caller_are_not_donated():
    """A round donates its state, not what the state was made from."""
    method, own, key = method_of("flora"), params(), jax.random.key(3)
    state = fl.federated.init(method, own, key, num_clients=6, fully_trained="bias")
    fl.federated.make_round(method, train())(own, state, cohort())
    assert all(not x.is_deleted() for x in jax.tree.leaves((own, key)))


def test_custom_forward_pass_trains_like_the_flax_module():
    """A function of merged weights trains as the module does."""

    def forward(base: Any, adapter: Any, gain: Any, *inputs: Any) -> Any:
        return NET.apply({"params": fl.lora.merge(base, adapter, gain)}, *inputs)

    method, servers = method_of(), []
    for module in (NET, forward):
        local = fl.federated.local_training(module, loss_fn, optax.sgd(0.1))
        step = fl.federated.make_round(method, local)
        state = fl.federated.init(method, params(), KEY, num_clients=6)
        servers.append(copy(step(params(), state, cohort())[0].server.adapter))
    for one, other in zip(*map(jax.tree.leaves, servers), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": [[1]]}, "one number per client"),
        ({"ids": [3, 3]}, "in the cohort twice"),
        ({"weights": [1.0, -1.0]}, "at least 0"),
        ({"weights": [1.0, 1.0, 1.0]}, "weights has shape (3,) for 2 clients"),
        ({"ranks": [1]}, "ranks has shape (1,) for 2 clients"),
        ({"batches": ROWS[:1]}, "[c, s, n] (clients, steps, examples) with c = 2"),
        ({"batches": ROWS + 40}, "rows up to"),
        ({"batches": ROWS.astype(np.float32)}, "must hold row numbers"),
        ({"data": {"x": DATA["x"], "y": DATA["y"][:39]}}, "leaves of equal length"),
        ({"valid": np.ones((2, 3), bool)}, "valid has shape (2, 3)"),
    ],
)
def test_cohort_of_inconsistent_shapes_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(InputError) as caught:
        cohort(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("fedit", {}, "'fedit' needs clients of one rank"),
        ("masked_mean", {"ranks": [1, 5]}, "Ranks [5] do not fit an adapter of rank 4"),
        ("masked_mean", {"ranks": [0, 4]}, "Ranks [0] do not fit"),
        ("fedsa_lora", {"ranks": 4, "ids": [5, 6]}, "Clients [6] do not exist"),
    ],
)
def test_ranks_unsupported_by_the_method_are_refused(
    name: str, changes: dict[str, Any], words: str
):
    method = method_of(name)
    step = fl.federated.make_round(method, train())
    state = fl.federated.init(method, params(), KEY, num_clients=6)
    with pytest.raises(InputError) as caught:
        step(params(), state, cohort(**changes))
    assert words in str(caught.value)


def test_a_loss_that_is_already_a_mean_is_refused():
    def mean_loss(apply: Any, batch: Any, key: Any) -> jax.Array:
        return jnp.mean(loss_fn(apply, batch, key))

    method = method_of()
    local = fl.federated.local_training(NET, mean_loss, optax.sgd(0.1))
    state = fl.federated.init(method, params(), KEY, num_clients=6)
    with pytest.raises(InputError, match="one loss per example"):
        fl.federated.make_round(method, local)(params(), state, cohort())


@pytest.mark.parametrize(
    ("patterns", "words"),
    [("layers_9", "matches no parameter"), (["layers"], "layers_0 are both adapted and fully")],
)
def test_invalid_fully_trained_patterns_are_refused(patterns: Any, words: str):
    with pytest.raises(InputError) as caught:
        fl.federated.init(method_of(), params(), KEY, num_clients=6, fully_trained=patterns)
    assert words in str(caught.value)

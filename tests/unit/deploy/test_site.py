"""A site's half and the server's half of a round, without training and without an engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.data import Tokens
from fedjax_lora.deploy.exchange import Exchange, header
from fedjax_lora.deploy.kernels import SiteKernels
from fedjax_lora.deploy.message import Refused, from_bytes, to_bytes
from fedjax_lora.deploy.site import Site
from fedjax_lora.deploy.wire import Rules
from fedjax_lora.federated import Assignment, ClientMetrics, ClientResult, transforms
from tests._helpers import problems
from tests._helpers.problems import R, assert_same_bits

SPEC = problems.STUB
HEAD = {"w": np.zeros(3, np.float32)}
RULES = Rules(SPEC, HEAD)
ROWS = 5
FEDERATION = problems.federation(
    problems.texts(), members=[np.arange(ROWS)] * 3, cohort=3, padded=3
)


def add_one(base, data, clients, rate, round) -> ClientResult:
    """Stands for local training: everything that is trained grows by one."""
    params = jax.tree.map(lambda x, m: jnp.where(m, x + 1, x), clients.params, clients.trainable)
    count = jnp.ones(len(clients.rank))
    return ClientResult(
        params, ClientMetrics(0.5 * count, 5 * count), clients.trainable, clients.rank
    )


def site(client: int, *updates: str, digest: str = "d") -> Site:
    method = methods.make("zero_padding", SPEC)
    zeros = np.zeros((ROWS, 4), np.int32)
    return Site(
        client=client,
        digest=digest,
        rules=RULES,
        work=add_one,
        base={},
        data=Tokens(zeros, zeros, np.ones(ROWS, np.int32), np.zeros(ROWS, np.int32)),
        rows=np.arange(ROWS),
        local=FEDERATION.local,
        head=HEAD,
        kernels=SiteKernels(SPEC, {}),
        updates=transforms.make_transforms(updates, method),
    )


def assignment(round: int = 0) -> Assignment:
    plan = FEDERATION.plan(round, np.full(3, 2), 0.1)
    clients = problems.stub_clients(np.zeros((3, 3)), plan.batches)
    return Assignment({}, None, clients, plan)


def carried(sites, change=lambda k, data: data):
    return lambda round, given: {
        k: out for k, data in given.items() if (out := change(k, sites[k].fit(data))) is not None
    }


def sent_to(client: int, round: int = 0) -> bytes:
    """The server's message to a client."""
    seen = {}
    exchange = Exchange(RULES, "d", lambda round, given: seen.update(given) or {}, least=0)
    exchange(assignment(round))
    return seen[client]


def test_answers_are_what_the_sites_have():
    exchange = Exchange(RULES, "d", carried([site(k) for k in range(3)]))
    given = assignment()
    got = exchange(given)
    want = add_one({}, None, given.clients, None, None)
    assert_same_bits((got.params, got.metrics), (want.params, want.metrics))
    assert got.answered.all()
    assert exchange.sizes[0].up == 4 * (2 * SPEC.component_size + 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda k, data: None if k == 1 else data,
        lambda k, data: data[:-4] if k == 1 else data,
        lambda k, data: site(2).fit(sent_to(2)) if k == 1 else data,  # a copy of another's
        lambda k, data: site(1).fit(sent_to(1, round=7)) if k == 1 else data,  # of another round
    ],
    ids=["silent", "damaged", "copied", "late"],
)
def test_a_missing_or_wrong_answer_is_left_out(change):
    exchange = Exchange(RULES, "d", carried([site(k) for k in range(3)], change))
    given = assignment()
    got = exchange(given)
    ids = np.asarray(given.plan.id)
    assert ids[~got.answered].tolist() == [1]
    k = int(np.flatnonzero(ids == 1)[0])
    own = jax.tree.map(lambda x: x[k], (got.params, given.clients.params))
    assert_same_bits(*own)


def test_too_few_answers_stop_the_run_in_one_sentence():
    send = carried([site(k) for k in range(3)], lambda k, data: data if k == 0 else None)
    exchange = Exchange(RULES, "d", send, least=2)
    with pytest.raises(InputError, match=r"Round 1: 1 of 3 clients have answered, at least 2 must"):
        exchange(assignment())


def test_a_site_refuses_a_message_of_another_federation_or_client():
    with pytest.raises(Refused, match="digest"):
        site(0, digest="e").fit(sent_to(0))
    with pytest.raises(Refused, match="client"):
        site(1).fit(sent_to(0))


def test_nothing_but_factors_head_and_four_numbers_leaves_a_site():
    message = from_bytes(site(0).fit(sent_to(0)), most=1 << 16)
    assert set(message.arrays) == {"layer.a", "layer.b", "head.w"}
    told = {"rank", "loss", "examples", "encoding", "kernels"}  # the last: a name of the server's
    assert set(message.meta) == told | set(header("d", 0, 0))


def test_noise_is_of_the_sites_own_entropy():
    """The same message twice: noise that is drawn from the run's seed would be the same."""
    given = sent_to(0)
    assert site(0).fit(given) == site(0).fit(given)
    noisy = site(0, "gaussian_noise(multiplier=1.0, norm=1.0)")
    one, other = (from_bytes(noisy.fit(given), most=1 << 16).arrays for _ in range(2))
    for name in one:
        assert not np.any(one[name] == other[name])


def test_a_clipped_update_has_the_norm():
    arrays = from_bytes(site(0, "clip(norm=0.5)").fit(sent_to(0)), most=1 << 16).arrays
    length = np.sqrt(sum(np.sum(np.square(x)) for x in arrays.values()))  # the start is zero
    assert abs(length - 0.5) < 1e-6


def test_a_site_takes_the_steps_that_a_simulated_client_takes():
    """Its own rows, counted from 0, are those of the whole data at its members."""
    fed = problems.federation(problems.texts())
    length = np.asarray(problems.texts().length)
    for round in range(3):
        plan = fed.plan(round, np.full(6, R), 0.1)
        for k, id in enumerate(plan.id):
            own = fed.members[id]
            got = fed.local.batches(
                round, [id], [np.arange(len(own))], length[own],
                plan.batches.steps[k : k + 1], padded_steps=fed.steps,
            )  # fmt: skip
            valid = plan.batches.valid[k]
            np.testing.assert_array_equal(got.valid[0], valid)
            np.testing.assert_array_equal(own[got.index[0]][valid], plan.batches.index[k][valid])
            np.testing.assert_array_equal(got.tokens[0], plan.batches.tokens[k])


def test_a_server_cannot_ask_for_more_steps_than_the_rows_give():
    message = from_bytes(sent_to(0), most=1 << 16)
    message.meta["steps"] = 1000
    with pytest.raises(Refused, match="steps = 1000"):
        site(0).fit(to_bytes(message))

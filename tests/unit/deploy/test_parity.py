"""Messages that are packed, sent as bytes and unpacked give the bits of a simulation."""

import jax
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.deploy.exchange import Exchange
from fedjax_lora.deploy.site import KEY, Site
from fedjax_lora.deploy.wire import Rules
from fedjax_lora.federated import Execution
from tests._helpers import problems
from tests._helpers.problems import assert_same_bits, bag_rounds, ranks_for

STAYS = {"flora", "fedex_lora", "fedmomentum", "frlora", "fedsa_lora"}
TRAVELS = [name for name in methods.METHODS if name not in STAYS]
"""Those whose base does not change, and whose clients keep nothing between rounds."""

REMEMBERS = {"ffa_lora", "rolora", "florist"}
"""Methods whose ``traffic`` counts less down than a client gets that remembers nothing."""


def sites(method: methods.Method, rules: Rules) -> list[Site]:
    problem, fed = problems.bag(), problems.round_federation()
    work = jax.jit(federated.make_client_work(method, problems.training("bag")))
    return [
        Site(
            client=k,
            digest="d",
            rules=rules,
            work=work,
            base=problem.base,
            data=problem.data,
            rows=own,
            local=fed.local,
            head=problem.head,
        )
        for k, own in enumerate(fed.members)
    ]


def over_messages(name: str):
    """The round of a method with real messages, and its exchange."""
    problem = problems.bag()
    method = methods.make(name, problem.spec)
    rules = Rules(
        method.spec,
        problem.head,
        method.sends,
        selects=method.select is not None,
        trims=method.trim is not None,
    )
    each = sites(method, rules)
    exchange = Exchange(
        rules, "d", lambda round, given: {k: each[k].fit(data) for k, data in given.items()}
    )
    execution = Execution(mode="remote", exchange=exchange)
    step = federated.compile_round(method, problems.training("bag"), execution=execution)
    return method, step, exchange


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[pytest.mark.slow] * (m != "hlora")) for m in TRAVELS]
)
def test_messages_give_the_bits_of_a_simulation(name):
    """Two rounds, compiled without fusion, which decides the last bit of a mean over clients."""
    made, fed = bag_rounds(name, "vmap of one"), problems.round_federation()
    method, step, exchange = over_messages(name)
    want = got = made.state()
    for t in range(2):
        plan = fed.plan(t, ranks_for(name), 0.01)
        before = problems.copy(got.server)
        got, seen = step(made.base, made.data, got, plan, jax.random.key(0))
        want, reported = made.run(made.state() if t == 0 else want, plan)
        assert_same_bits(problems.copy(seen._replace(silent=())), problems.copy(reported))
        assert_same_bits(problems.copy(got), problems.copy(want))
        assert not exchange.refused
        check_traffic(method, exchange, plan, seen, before)


def check_traffic(method, exchange, plan, seen, server) -> None:
    """Bytes of the arrays are what ``traffic`` counts, besides the head and a random key.

    Indices that the server has drawn go down as a bit a component, and not up. What ``traffic``
    leaves out of ``down`` is what a client could remember (the factor that does not change) or
    draw by itself (components that carry nothing).
    """
    head = 4 * sum(x.size for x in jax.tree.leaves(problems.bag().head))
    present = np.asarray(plan.weight) > 0
    ids, rank = np.asarray(plan.id)[present], np.asarray(plan.rank)[present]
    down = method.traffic(server, rank, int(plan.round)).down
    up = method.traffic(server, np.asarray(seen.rank)[present], int(plan.round))
    drawn = up.exact if method.select is None else 0
    sizes = [exchange.sizes[k] for k in ids.tolist()]
    assert [s.up - head for s in sizes] == (up.up - drawn).tolist()
    more = np.array([s.down - head - KEY.size_bytes for s in sizes]) - down
    if method.name in REMEMBERS:
        assert np.all(more >= 0)
    else:
        assert np.all((more >= 0) & (more <= 2))

"""Messages that are packed, sent as bytes and unpacked give the bits of a simulation."""

from typing import Any

import jax
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.deploy import kernels
from fedjax_lora.deploy.exchange import Exchange
from fedjax_lora.deploy.site import KEY, Site
from fedjax_lora.deploy.wire import Rules
from fedjax_lora.federated import Execution
from fedjax_lora.methods.base import client_kernels
from tests._helpers import problems
from tests._helpers.problems import assert_same_bits, bag_rounds, ranks_for

STAYS = {"fedsa_lora"}
TRAVELS = [name for name in methods.METHODS if name not in STAYS]
"""Those whose clients keep nothing between rounds."""

REMEMBERS = {"ffa_lora", "rolora", "florist", "flora", "ravan", "fed_sb"}
"""Methods whose ``traffic`` counts less down than a client gets that remembers nothing."""


@pytest.fixture
def large_kernels(monkeypatch):
    """Kernels so large that products of factors are always smaller, though a problem's are not."""
    monkeypatch.setattr(kernels, "kernel_bytes", lambda target: 1 << 40)


def sites(method: methods.Method, rules: Rules, first: Any) -> list[Site]:
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
            kernels=kernels.SiteKernels(method.spec, first),
        )
        for k, own in enumerate(fed.members)
    ]


def over_messages(method: methods.Method, first: Any):
    """The round of a method with real messages, and its exchange; sites hold the first kernels."""
    problem = problems.bag()
    rules = Rules(
        method.spec,
        problem.head,
        method.sends,
        selects=method.select is not None,
        trims=method.trim is not None,
        adds=bool(first),
    )
    each = sites(method, rules, first)
    exchange = Exchange(
        rules, "d", lambda round, given: {k: each[k].fit(data) for k, data in given.items()}
    )
    exchange.held = {k: site.kernels.version for k, site in enumerate(each)}
    execution = Execution(mode="remote", exchange=exchange, report=exchange.report)
    step = federated.compile_round(method, problems.training("bag"), execution=execution)
    return step, exchange


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[pytest.mark.slow] * (m != "hlora")) for m in TRAVELS]
)
@pytest.mark.usefixtures("large_kernels")
def test_messages_give_the_bits_of_a_simulation(name):
    """Three rounds of other cohorts, so that clients come back; compiled without fusion, which
    decides the last bit of a mean over clients.
    """
    made, fed = bag_rounds(name, "vmap of one"), problems.round_federation()
    method = methods.make(name, problems.bag().spec)
    first = client_kernels(method, made.state().server)
    step, exchange = over_messages(method, first)
    missed = np.zeros(len(problems.SIZES), int)
    want = got = made.state()
    for t in range(3):
        plan = fed.plan(t, ranks_for(name), 0.01)
        before = problems.copy(got.server)
        got, seen = step(made.base, made.data, got, plan, jax.random.key(0))
        want, reported = made.run(made.state() if t == 0 else want, plan)
        assert_same_bits(problems.copy(seen._replace(silent=(), added=())), problems.copy(reported))
        assert_same_bits(problems.copy(got), problems.copy(want))
        assert not exchange.refused
        missed = check_traffic(method, exchange, plan, seen, before, missed)


def check_traffic(method, exchange, plan, seen, server, missed) -> np.ndarray:
    """Bytes of the arrays are what ``traffic`` counts, besides the head and a random key.

    Indices that the server has drawn go down as a bit a component, and not up. What ``traffic``
    leaves out of ``down`` is what a client could remember (the factor that does not change) or
    draw by itself (components that carry nothing). Of products that are added to the base it counts
    one round's; a client gets those of all rounds since it last took part.

    Args:
      missed: bytes of the products that each client does not have, ``int[N]``.

    Returns:
      These bytes after the round.
    """
    head = 4 * sum(x.size for x in jax.tree.leaves(problems.bag().head))
    present = np.asarray(plan.weight) > 0
    ids, rank = np.asarray(plan.id)[present], np.asarray(plan.rank)[present]
    traffic = method.traffic(server, rank, int(plan.round))
    down = traffic.down - traffic.common + missed[ids]
    up = method.traffic(server, np.asarray(seen.rank)[present], int(plan.round))
    drawn = up.exact if method.select is None else 0
    sizes = [exchange.sizes[k] for k in ids.tolist()]
    assert [s.up - head for s in sizes] == (up.up - drawn).tolist()
    more = np.array([s.down - head - KEY.size_bytes for s in sizes]) - down
    if method.name in REMEMBERS:
        assert np.all(more >= 0)
    else:
        assert np.all((more >= 0) & (more <= 2))
    missed = missed.copy()
    missed[ids] = 0
    pairs = problems.copy(seen.added or {})
    if not any(np.any(pair.a) for pair in pairs.values()):
        return missed
    return missed + sum(
        kernels.product_bytes(t, method.spec, pairs[t.path]) for t in method.spec.targets
    )

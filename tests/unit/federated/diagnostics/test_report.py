"""A measured round: the same training, and its measurements."""

import functools
import json

import jax
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.federated import diagnostics, optimizers
from tests._helpers import problems
from tests._helpers.problems import PADDED, assert_close, bag_rounds

NAMES = {
    "init_noise", "agg_noise", "ideal_norm", "init_ratio", "agg_ratio", "energy", "stable_rank",
    "effective_rank", "same_cosine", "cross_cosine", "client_bytes_mean", "client_bytes_max",
}  # fmt: skip


@functools.cache
def measured_rounds(method: str, mode: str = "vmap") -> problems.Rounds:
    problem = problems.bag()
    look = diagnostics.make_diagnostics(
        problem.spec,
        train_head=True,
        optimizer=optimizers.optimizer(problems.ADAMW, clip=1.0),
    )
    fn = federated.compile_round(
        methods.make(method, problem.spec),
        problems.training("bag"),
        execution=federated.Execution(
            mode=mode,  # pyright: ignore[reportArgumentType]
            clients_per_step=2 if mode == "vmap" else 1,
            mesh=federated.client_mesh(problems.DEVICES) if mode == "sharded" else None,
        ),
        measure=look,
    )
    return bag_rounds(method, mode)._replace(fn=fn)


def plan_of(t: int = 0):
    return problems.round_federation().plan(t, problems.RANK, 0.05)


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("fed_plora", "vmap"),
        ("flora", "sharded"),
        pytest.param("flora", "vmap", marks=pytest.mark.slow),
        pytest.param("fed_plora", "loop", marks=pytest.mark.slow),
        pytest.param("fed_plora", "sharded", marks=pytest.mark.slow),
        pytest.param("flora", "loop", marks=pytest.mark.slow),
    ],
)
def test_measured_round_gives_the_same_state(method: str, mode: str):
    plain, made = bag_rounds(method, mode), measured_rounds(method, mode)
    want, got = plain.state(), made.state()
    for t in range(2):
        want, quiet = plain.run(want, plan_of(t))
        got, seen = made.run(got, plan_of(t))
        assert_close(problems.copy(got), problems.copy(want))
        assert_close(tuple(seen)[:2], tuple(quiet)[:2])
        assert dict(quiet.measured) == dict(quiet.seconds) == {}
        assert set(seen.measured) == NAMES
        assert set(seen.seconds) == {"server_seconds", "measure_seconds"}
        assert all(value > 0 for value in seen.seconds.values())


def test_measurements_do_not_depend_on_the_mode():
    seen = [
        measured_rounds("fed_plora", mode).run(
            measured_rounds("fed_plora", mode).state(), plan_of()
        )
        for mode in ("vmap", "loop", "sharded")
    ]
    one, *others = ([metrics.measured[name] for name in sorted(NAMES)] for _, metrics in seen)
    for other in others:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), one, other
        )


def test_measured_round_keeps_its_input_and_reports_plain_json():
    made = measured_rounds("fed_plora")
    state = made.state()
    _, seen = made.run(state, plan_of())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert json.loads(json.dumps(seen.measured, allow_nan=False)) == seen.measured
    assert seen.measured["init_noise"] == 0
    assert seen.measured["agg_noise"] > 0
    assert len(seen.measured["energy"]) == problems.R
    ratio = seen.measured["agg_noise"] / seen.measured["ideal_norm"]
    assert seen.measured["agg_ratio"] == pytest.approx(ratio, rel=1e-6)


def test_clients_with_non_finite_updates_are_not_measured():
    """All texts of a client hold a word whose vector is not a number; then those of all do."""
    made, plan = measured_rounds("fed_plora"), plan_of()
    table = made.base["words"]["embedding"]
    base = lambda rows: {  # noqa: E731
        **made.base, "words": {"embedding": table.at[rows].set(np.nan)}
    }  # fmt: skip
    rows = problems.members()[plan.id[0]]
    data = made.data._replace(ids=made.data.ids.at[rows, 0].set(problems.BROKEN))
    _, seen = made.run(made.state(), plan, base=base(problems.BROKEN), data=data)
    without = (plan.weight * (np.arange(PADDED) != 0)).astype(np.float32)
    _, want = made.run(made.state(), plan._replace(weight=without))
    assert np.flatnonzero(seen.rejected).tolist() == [0]
    assert seen.measured == want.measured

    _, seen = made.run(made.state(), plan, base=base(slice(None)))
    found = seen.measured
    assert [found[n] for n in ("init_noise", "agg_noise", "ideal_norm")] == [0, 0, 0]
    absent = ("init_ratio", "agg_ratio", "same_cosine", "cross_cosine", "client_bytes_mean")
    assert all(found[name] is None for name in absent)

"""Runs with a simulated clock: what it counts, and ranks by device."""

import json

import jax
import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.core.errors import Stopped
from fedjax_lora.core.types import ClientParams
from fedjax_lora.runs import build
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.run import run
from fedjax_lora.runs.step_cost import step_flops
from tests._helpers import tiny_runs
from tests._helpers.problems import WIDTH

CHANGES = {
    "federation.ranks": "tiers(ranks=[1, 4])",
    "federation.method": "zero_padding",
    "execution.checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def shared():
    return {"assets": tiny_runs.assets(), "programs": programs()}


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Five devices, the first of them a hundred times slower than the others."""
    file = tmp_path_factory.mktemp("devices") / "devices.csv"
    rows = [f"{flops},1e5,5e4,{memory}" for flops, memory in [(1e6, 1e9)] + [(1e8, 1e9)] * 4]
    file.write_text("\n".join(["flops,down,up,memory", *rows]))
    return f"file(path={str(file)!r})"


def changed(**federation):
    fields = {f"federation.{name}": value for name, value in federation.items()}
    return tiny_runs.change(tiny_runs.CONFIG, CHANGES | fields)


def test_recorded_seconds_follow_from_traffic_and_work(shared, devices):
    """From the record's bytes and the operations of a step."""
    config = changed(device_profiles=devices, deadline="first(over=1.5)")
    whole = run(config, **shared)
    built = build.build(config, **{"assets": shared["assets"], "shared": shared["programs"]})
    clock, flops = built.setup.clock, {}
    assert built.federation.cohort == 3, "one and a half cohorts"
    for record in whole.records:
        clients = record["clients"]
        assert len(clients["id"]) == 3 and len(record["surplus"]) == 1 and record["late"] == []
        ready = []
        for k, steps, up, down, seconds in zip(
            *(clients[x] for x in ("id", "steps", "up_bytes", "down_bytes", "seconds")), strict=True
        ):
            assert (up == 0) == (steps == 0) == (k in record["surplus"])
            if steps:
                speed, tokens = 1e6 if k == 0 else 1e8, steps * 2 * WIDTH
                flops[k] = (seconds - down / 1e5 - up / 5e4) * speed / tokens
                ready.append(seconds)
        assert record["simulated_seconds"] == pytest.approx(max(ready))
        assert 0 not in clients["id"] or record["surplus"] == [0]
    for k, counted in flops.items():
        assert counted == pytest.approx(clock.work.token_flops(whole.rank[k]), rel=1e-6)


@pytest.mark.slow
def test_resumed_run_has_the_same_clock(shared, devices, tmp_path):
    config = changed(device_profiles=devices, deadline="first(over=1.5)")
    whole = run(config, **shared)
    with pytest.raises(Stopped):
        run(config, out=tmp_path / "again", stop=_after(2), **shared)
    resumed = run(config, out=tmp_path / "again", resume=True, **shared)
    assert resumed.records == whole.records
    last = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["simulated_seconds"] > 0


def test_work_per_token_equals_the_traced_flops(shared, devices):
    """Linear in the rank: at the stored rank it is what --explain counts."""
    config = changed(device_profiles=devices)
    built = build.build(config, shared["assets"], shared["programs"])
    spec, params = built.round_spec, shared["assets"].model.params
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    base = {name: part for name, part in shapes.items() if name != "head"}
    trained = ClientParams(spec.spec.shapes(), shapes["head"])
    counted = step_flops(spec, base, trained, shared["assets"].train)[spec.shapes[-1]]
    told = built.setup.clock.work.token_flops(np.array(spec.spec.rank)) * spec.shapes[-1].tokens
    assert told == pytest.approx(counted, rel=1e-9)


def test_ranks_by_device_are_the_largest_that_meet_the_deadline(shared, devices):
    """At every client the rank is in time, and one more is not."""
    config = changed(device_profiles=devices, ranks="by_device(high=4, seconds=0.15)")
    built = build.build(config, shared["assets"], shared["programs"])
    rank, work = built.setup.allocation.ranks, built.setup.clock.work
    assert rank[0] == 1 and rank[1:].min() > 1
    size = built.method.spec.component_size
    head = 4 * sum(x.size for x in jax.tree.leaves(shared["assets"].model.params["head"]))

    def seconds(k, r):
        tokens = min(len(built.federation.members[k]), 2 * 2) * WIDTH
        sent = 4 * size * r + head
        return tokens * work.token_flops(r) / 1e8 + sent / 1e5 + sent / 5e4

    for k in range(1, 5):
        assert seconds(k, rank[k]) <= 0.15
        assert rank[k] == 4 or seconds(k, rank[k] + 1) > 0.15


@pytest.mark.parametrize(
    ("federation", "words"),
    [
        ({"deadline": "after(seconds=3)"}, "needs device profiles"),
        ({"ranks": "by_device(high=4)"}, "needs device profiles"),
        ({"device_profiles": "lapt", "ranks": "fixed(rank=1)"}, "Unknown device profiles 'lapt'"),
        (
            {"device_profiles": "classes(names=['server-t4'], availability=0.5)",
             "sampling": "round_robin"},
            "give profiles an availability of 1",
        ),
        (
            {"device_profiles": "classes(names=['server-t4'])",
             "ranks": "loss_based(low=1, high=2, share=0.5)"},
            "does not count the training by which",
        ),
    ],
)  # fmt: skip
def test_incomplete_clock_options_are_refused_in_one_sentence(federation, words, shared):
    with pytest.raises(InputError) as caught:
        build.build(changed(**federation), shared["assets"], shared["programs"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_device_too_small_for_any_rank_is_refused(shared, tmp_path):
    (tmp_path / "small.csv").write_text("flops,down,up,memory\n1e9,1e6,1e6,1000")
    config = changed(
        device_profiles=f"file(path={str(tmp_path / 'small.csv')!r})", ranks="by_device(high=4)"
    )
    with pytest.raises(InputError, match=r"client 0 has 1e.03 bytes of memory and rank 1 needs"):
        build.build(config, shared["assets"], shared["programs"])


def test_only_available_clients_are_drawn(shared, tmp_path):
    rows = ["flops,down,up,availability"] + ["1e9,1e6,1e6,1"] * 3 + ["1e9,1e6,1e6,1e-9"] * 2
    (tmp_path / "few.csv").write_text("\n".join(rows))
    config = changed(device_profiles=f"file(path={str(tmp_path / 'few.csv')!r})", cohort=4)
    federation = build.build(config, shared["assets"], shared["programs"]).federation
    drawn = [sorted(federation.sample(t).tolist()) for t in range(8)]
    assert drawn == [[0, 1, 2]] * 8
    plan = federation.plan(0, np.ones(5, int), 0.1)
    assert np.sum(plan.weight > 0) == 3 and len(plan.id) == 4


def _after(rounds):
    done = []
    return lambda: done.append(0) or len(done) >= rounds

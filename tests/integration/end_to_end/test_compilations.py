"""A run compiles everything in its first round, in every execution mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import fedjax_lora as fl
from fedjax_lora import federated
from fedjax_lora.evaluation import predict as prediction
from fedjax_lora.runs import build
from tests._helpers import problems, tiny_runs

WAYS = {
    "together": {},
    "on eight devices": {"execution.mode": "sharded"},
    "base in two parts": {"execution.mode": "sharded", "execution.mesh": (-1, 2)},
}
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """The programs compiled so far: their number, while the test goes on."""
    seen = []

    def note(event, seconds, **about):
        if event == COMPILED:
            seen.append(about)

    monitoring.register_event_duration_secs_listener(note)
    yield seen
    monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] * (way != "base in two parts")) for way in WAYS],
)
def test_nothing_is_compiled_after_the_first_round(way, compiled):
    changes = WAYS[way] | {"execution.eval_every": 1, "federation.cohort": 4}
    counts = []
    fl.run(
        tiny_runs.change(tiny_runs.CONFIG, changes),
        assets=tiny_runs.assets(),
        on_round=lambda record: counts.append(len(compiled)),
    )
    assert counts[0] > 0
    assert counts == [counts[0]] * tiny_runs.ROUNDS


def test_round_is_one_program(compiled):
    assets = tiny_runs.assets()
    made = build.build(tiny_runs.CONFIG, assets)
    state = made.begin().state
    plans = [made.federation.plan(t, made.ranks.initial, 0.01) for t in range(3)]
    compiled.clear()
    for plan in plans:
        state, _ = made.train(state, plan)
    assert len(compiled) == 1


@pytest.mark.parametrize("devices", [1, 4])
def test_predictions_compile_once_for_each_length(devices, compiled):
    """Spread over devices they are the same, also where a batch has to be filled up."""
    made = problems.bag()
    objective = federated.text_classification(made.module, (8, problems.WIDTH))
    mesh = federated.client_mesh(4) if devices > 1 else None
    adapter = problems.random_adapter(made.spec, 0)
    gain = {"layers/query": jnp.ones((2, problems.R))}
    place = lambda tree: federated.place(tree, federated.everywhere(mesh))  # noqa: E731
    params = prediction.AdaptedParams(made.base, problems.ClientParams(adapter, made.head), gain)
    placed = place((params, made.data))
    predict = prediction.make_predict(objective, batch=6, mesh=mesh)
    compiled.clear()
    got, again = predict(*placed), predict(*placed)
    assert len(compiled) == 2
    np.testing.assert_array_equal(got, again)
    batch = objective.take(made.data, np.arange(len(got)), problems.WIDTH)
    want = objective.outputs(made.base, params.trained, gain, batch)
    np.testing.assert_allclose(got, want, atol=problems.MODE_TOLERANCE)


@pytest.mark.parametrize("devices", [1, 4])
def test_few_texts_use_a_smaller_batch_shape(devices, compiled):
    """However large a batch may be; and as often compiled as before."""
    made = problems.bag()
    objective = federated.text_classification(made.module, (problems.WIDTH,))
    sizes = []

    def outputs(base, trained, gain, batch):
        sizes.append(len(batch.ids))
        return objective.outputs(base, trained, gain, batch)

    mesh = federated.client_mesh(devices) if devices > 1 else None
    few = jax.tree.map(lambda x: x[:6], made.data)
    adapter = problems.random_adapter(made.spec, 0)
    gain = {"layers/query": jnp.ones((2, problems.R))}
    params = prediction.AdaptedParams(made.base, problems.ClientParams(adapter, made.head), gain)
    placed = federated.place((params, few), federated.everywhere(mesh))
    counting = objective._replace(outputs=outputs)
    predict = prediction.make_predict(counting, batch=1_000_000, mesh=mesh)
    compiled.clear()
    got, again = predict(*placed), predict(*placed)
    assert len(compiled) == 1 and sizes == [6 if mesh is None else 8]
    np.testing.assert_array_equal(got, again)
    whole = prediction.make_predict(objective, batch=4)(params, few)
    np.testing.assert_allclose(got, whole, atol=problems.MODE_TOLERANCE)

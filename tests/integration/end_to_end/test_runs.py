"""Whole runs on the real encoder (its first layer) and real text, small."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lora
import fedjax_lora as fl
from fedjax_lora import InputError, RunConfig, federated, lora, methods
from fedjax_lora.core import trees
from fedjax_lora.evaluation.evaluator import global_model
from fedjax_lora.runs import build, compilation
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
)
from fedjax_lora.runs.outputs import Result

# Batches of two short texts: a step is compiled for two shapes, where larger ones have six.
CONFIG = RunConfig(
    data=DataConfig(train_examples=64, validation_examples=40, test_examples=80, max_length=8),
    model=ModelConfig(layers=1),
    federation=FederationConfig(clients=8, cohort=3, rounds=2, ranks="tiers(ranks=[1, 2, 4])"),
    local=LocalConfig(batch=2, learning_rate=1e-2),
)
PROGRAMS = compilation.programs()


def change(config: RunConfig, **groups) -> RunConfig:
    """The config with some fields of some groups exchanged."""
    made = {
        name: dataclasses.replace(getattr(config, name), **fields)
        for name, fields in groups.items()
    }
    return dataclasses.replace(config, **made)


def run(config: RunConfig, assets: build.Assets, **options) -> Result:
    """A run that shares the compiled functions of this module's other runs."""
    return fl.run(config, assets=assets, programs=PROGRAMS, **options)


def prepare(config: RunConfig, assets: build.Assets) -> build.Run:
    """A prepared run that shares the compiled functions of this module's other runs."""
    return build.build(config, assets, PROGRAMS)


@pytest.fixture(scope="module")
def assets() -> build.Assets:
    return build.load_assets(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, assets):
    out = tmp_path_factory.mktemp("runs") / "run"
    return run(CONFIG, assets, out=out)


def test_run_writes_all_outputs(finished):
    out = finished.out
    assert configs.load(out / "config.json") == CONFIG
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == finished.records
    assert [x["round"] for x in lines] == [1, 2]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] == lines[-1]["accuracy"]
    assert 0 < summary["majority_accuracy"] < 1
    assert summary["processor_seconds"] > 0 < summary["seconds"]
    assert len((out / "timing.jsonl").read_text().splitlines()) == 2
    assert (out / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (out / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "fedjax_lora.json",
    }


def test_same_config_gives_the_same_bytes(finished, assets, tmp_path):
    again = fl.run(CONFIG, assets=assets, out=tmp_path / "again")  # compiled for itself
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (again.out / name).read_bytes() == (finished.out / name).read_bytes()


def test_measured_run_has_the_same_scores_and_measurements(finished, assets, tmp_path):
    measured = change(CONFIG, execution={"measure": True})
    result = run(measured, assets, out=tmp_path / "run")
    read = lambda name: [  # noqa: E731
        json.loads(line) for line in (result.out / name).read_text().splitlines()
    ]
    records = read("metrics.jsonl")
    for record, times, plain in zip(records, read("timing.jsonl"), finished.records, strict=True):
        assert not any(name.endswith("seconds") for name in record)
        assert times["server_seconds"] + times["measure_seconds"] < times["train_seconds"]
        assert record["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
        assert set(plain) < set(record)
        assert record["init_noise"] == 0 < record["agg_noise"]
        # The encoder, and more for a client's own training, but no second copy of the encoder.
        base = trees.size_bytes({k: v for k, v in assets.model.params.items() if k != "head"})
        assert base < record["client_bytes_mean"] <= record["client_bytes_max"] < 1.1 * base


def test_another_seed_gives_other_scores(finished, assets):
    other = run(dataclasses.replace(CONFIG, seed=1), assets)
    assert other.records != finished.records


def test_recorded_traffic_is_that_of_adapters_and_head(finished, assets):
    """Fed-PLoRA: r components and r indices up, R components down, the head both ways."""
    made = prepare(CONFIG, assets)
    plan = made.federation.plan(0, made.ranks.initial, 0.0)
    rank = plan.rank[plan.weight > 0]
    component = 4 * 2 * (384 + 384)  # query and value of one layer, float32
    head = 4 * (384 * 8 + 8)
    record = finished.records[0]
    assert record["up_bytes"] == int(rank.sum()) * (component + 4) + 3 * head
    assert record["down_bytes"] == 3 * 4 * component + 3 * head
    clients = record["clients"]
    order = np.argsort(plan.id)
    assert clients["id"] == plan.id[order].tolist()
    assert clients["steps"] == plan.batches.steps[order].tolist()
    assert clients["up_bytes"] == [int(r) * (component + 4) + head for r in plan.rank[order]]
    assert clients["down_bytes"] == [4 * component + head] * 3
    examples = plan.batches.valid.sum(axis=(1, 2))[order]
    assert record["train_loss"] == pytest.approx(np.average(clients["loss"], weights=examples))


@pytest.mark.slow
def test_accuracy_increases_over_rounds():
    """Clients alike, so that the loss does not depend on who was drawn."""
    config = change(
        CONFIG,
        data={"train_examples": 240},
        model={"pooling": "mean"},
        federation={"rounds": 12, "partition": "iid"},
        local={"learning_rate": 3e-3},
        execution={"eval_every": 12},
    )
    result = fl.run(config)
    assert result.records[-1]["train_loss"] < 0.8 * result.records[0]["train_loss"]
    assert result.summary["accuracy"] > result.summary["majority_accuracy"]


def test_task_with_another_metric_also_records_accuracy(assets):
    other = dataclasses.replace(assets.task.task, metric="f1")
    ready = prepare(CONFIG, assets._replace(task=assets.task._replace(task=other)))
    scores, plain = ready.evaluate(ready.begin().state), prepare(CONFIG, assets)
    expected = plain.evaluate(plain.begin().state)
    assert scores.keys() == expected.keys() | {
        "f1", "macro_f1", "validation_f1", "validation_macro_f1",
    }  # fmt: skip
    assert {name: scores[name] for name in expected} == expected
    assert expected["accuracy"] != scores["f1"]


def test_top_level_run_is_the_run_of_the_runs_namespace(assets):
    assert fedjax_lora.run is fl.run


@pytest.mark.parametrize("method", ["fed_plora", "flora"])
def test_exported_adapter_gives_the_same_logits_in_peft(method, assets, tmp_path):
    """PEFT on the PyTorch model, also for a method that changes the base."""
    import peft
    import torch
    from transformers import BertForSequenceClassification

    config = change(CONFIG, federation={"method": method})
    result = run(config, assets, out=tmp_path / "run")
    base = BertForSequenceClassification.from_pretrained(
        assets.model.folder, num_labels=8, num_hidden_layers=1
    )
    model = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    tokens = assets.test
    ids = torch.tensor(tokens.ids[:16], dtype=torch.long)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(tokens.length[:16])[:, None]
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask.long()).logits.numpy()

    trained, gain = global_model(result.state, result.spec)
    full = lora.with_kernels(assets.model.params, result.state.server.kernels)
    objective = federated.text_classification(assets.model.module, [tokens.ids.shape[1]])
    batch = objective.take(jax.tree.map(jnp.asarray, tokens), jnp.arange(16), tokens.ids.shape[1])
    ours = objective.outputs(full, trained, gain, batch)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_folder_with_another_run_is_refused_and_kept(finished, assets):
    before = (finished.out / "metrics.jsonl").read_bytes()
    other = change(CONFIG, federation={"method": "hlora"})
    with pytest.raises(InputError, match=r"different run \(federation.method\)"):
        run(other, assets, out=finished.out)
    with pytest.raises(InputError, match="this run already"):
        run(CONFIG, assets, out=finished.out)
    assert (finished.out / "metrics.jsonl").read_bytes() == before


def test_folder_with_other_files_is_refused(assets, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"other files \(thesis.tex\)"):
            fl.run(CONFIG, out=tmp_path, assets=assets, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("asked", [{"devices": 4}, {"mesh": (4, 2)}])
def test_devices_unused_by_a_mode_are_refused(asked, assets):
    with pytest.raises(
        InputError, match=f"{next(iter(asked))} is given, but mode vmap runs on one"
    ):
        run(change(CONFIG, execution=asked), assets)


def test_fedit_refuses_different_ranks(assets):
    with pytest.raises(InputError, match=r"'fedit' needs clients of one rank.*\[1, 2, 4\]"):
        run(change(CONFIG, federation={"method": "fedit"}), assets)


SCORED = change(
    CONFIG,
    federation={
        "ranks": "loss_based(low=1, high=4, share=0.2, promoted='fresh')",
        "rounds": 3,
        "method": "replication",
    },
)


@pytest.fixture(scope="module")
def scored(assets):
    return run(SCORED, assets)


def test_best_clients_are_promoted_after_the_first_round(scored, assets):
    """Against the evaluation of rounds in which each client is alone."""
    made, losses = prepare(SCORED, assets), []
    for client in range(8):
        plan = made.federation.plan(0, np.full(8, 1), 1e-2, ids=np.array([client]))
        state, _ = made.train(made.begin().state, plan)
        # Components beyond the first are as at the start, with b = 0: they add nothing.
        losses.append(made.evaluate(state)["validation_loss"])
    best = np.argsort(losses, kind="stable")[:2]  # ceil(0.2 * 8)
    assert np.flatnonzero(scored.rank == 4).tolist() == sorted(best)
    assert np.sum(scored.rank == 1) == 6
    assert [record.get("ranks") for record in scored.records] == [None, {"1": 6, "4": 2}, None]
    assert scored.spec.rank == 4


def test_recorded_traffic_includes_client_scoring(scored):
    """Eight clients of rank 1 get a component and the head, and send their own back."""
    model = 4 * 2 * (384 + 384) + 4 * (384 * 8 + 8)
    first, second, _ = scored.records
    assert first["score_up_bytes"] == first["score_down_bytes"] == 8 * model
    assert first["up_bytes"] == first["down_bytes"] == (8 + 3) * model
    assert "score_up_bytes" not in second and second["up_bytes"] < 8 * model
    assert scored.summary["up_bytes"] == sum(record["up_bytes"] for record in scored.records)


@pytest.mark.parametrize("heads", [pytest.param("frozen", marks=pytest.mark.slow), "local"])
def test_traffic_counts_only_sent_heads(heads, assets):
    """A client sends its own head where it is scored, and no head in a round."""
    config = change(SCORED, federation={"heads": heads, "rounds": 1})
    (record,) = run(config, assets).records
    component, head = 4 * 2 * (384 + 384), 4 * (384 * 8 + 8)
    assert 0 <= record["accuracy"] <= 1
    assert record["up_bytes"] - record["score_up_bytes"] == 3 * component
    assert record["score_down_bytes"] == 8 * component
    assert record["score_up_bytes"] == 8 * component + (8 * head if heads == "local" else 0)


def test_run_with_client_scoring_is_reproducible(scored, assets):
    assert run(SCORED, assets).records == scored.records


def test_memory_budgets_use_the_component_size_of_the_model(assets):
    component = 4 * 2 * (384 + 384)  # query and value of one layer, float32
    ranks = f"budget(bytes=[{component}, {3 * component + 7}], high=9)"
    made = prepare(change(CONFIG, federation={"ranks": ranks}), assets)
    assert sorted(made.ranks.initial) == [1] * 4 + [3] * 4
    assert made.method.spec.rank == 3


@pytest.mark.parametrize(
    ("federation", "validation", "words"),
    [
        ({}, 0, "are none; set validation_examples"),
        ({"method": "fedit"}, 40, r"'fedit' needs clients of one rank.*\[1, 4\]"),
        ({"ranks": "loss_based(low=1, high=400, share=0.5)"}, 40, "LoRA rank 400 exceeds"),
    ],
)
def test_impossible_loss_based_run_is_refused(federation, validation, words, assets):
    config = change(SCORED, federation=federation, data={"validation_examples": validation})
    given = assets if validation else assets._replace(validation=None)
    with pytest.raises(InputError, match=words):
        prepare(config, given)


FAMILIES = {factory.__module__: name for name, factory in methods.METHODS.items()}
"""One method of each file. `test_method_matrix` has one of each kind on a small model, by default;
Fed-PLoRA and FLoRA are compared with PEFT above."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values())
def test_one_method_per_module_runs_on_the_real_model(name, assets):
    ranks = "tiers(ranks=[1, 4])" if methods.takes_mixed_ranks(name) else "fixed(rank=2)"
    config = change(
        CONFIG,
        federation={"method": name, "ranks": ranks, "rounds": 1},
        execution={"mode": "loop"},
    )
    assert np.isfinite(run(config, assets).records[-1]["loss"])


@pytest.mark.slow
def test_run_sharded_over_eight_devices_equals_one_device(finished, assets):
    config = dataclasses.replace(CONFIG, execution=ExecutionConfig(mode="sharded"))
    result = run(config, assets)
    for one, other in zip(finished.records, result.records, strict=True):
        # float32 sums in another order, through two rounds of AdamW
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)

"""Cost estimates of a run against XLA's memory analysis of the compiled round."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.cost_estimates.compiled import compiled_bytes
from fedjax_lora import methods
from fedjax_lora.cli import main
from fedjax_lora.core import flops, trees
from fedjax_lora.runs import build, config, cost
from fedjax_lora.runs.cost import estimate, memory
from tests._helpers.character_tokenizer import SIZE, make_tokenizer
from tests._helpers.small_options import small

pytestmark = pytest.mark.optimized

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2000,
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOLERANCE = 0.2
"""Of the sum; `experiments.benchmarks.cost_estimates` has it for larger models, and for memory
that was used."""


@pytest.fixture
def folder(tmp_path):
    """A checkpoint without weights, and 24 texts of 60 characters."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    make_tokenizer().save_pretrained(tmp_path)
    assert LLAMA["vocab_size"] >= SIZE
    rows = np.random.default_rng(0).choice([*"abcdefgh "], (24, 60))
    lines = [json.dumps({"say": "".join(r[:20]), "said": "".join(r[20:])}) for r in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


SPEC = "instructions(train='train.jsonl', instruction='say', completion='said', format='plain')"


def make(folder, *, method, remat=False, clients_per_step=1, targets="attention-qv"):
    return config.RunConfig(
        data=config.DataConfig(task=SPEC, data_dir=str(folder), max_length=64),
        model=config.ModelConfig(model=str(folder), remat=remat),
        lora=config.LoraConfig(targets=targets),
        federation=config.FederationConfig(
            method=method, clients=4, cohort=4, rounds=2, partition="iid",
            ranks="tiers(ranks=[4, 8])",
        ),
        local=config.LocalConfig(batch=4, max_steps=2),
        execution=config.ExecutionConfig(clients_per_step=clients_per_step),
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"method": "flora"},
        pytest.param(
            {"method": "hetlora", "remat": True, "clients_per_step": 2, "targets": "all-linear"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["flora", "recomputed layers, two at a time"],
)
def test_memory_estimate_equals_the_report_of_xla(options, folder):
    made = make(folder, **options)
    assets = build.load_assets(made, weights=False)
    found = cost.needs(made, assets).memory
    got = compiled_bytes(made, assets)
    assert found.total == pytest.approx(got, rel=TOLERANCE)
    assert found.base == trees.size_bytes(assets.model.params) < 0.5 * got


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4, 2), (2, 4)])
def test_memory_estimate_with_a_sharded_base_equals_the_report_of_xla(mesh, folder):
    """Activations and the clients' working copies are divided with it."""
    made = make(folder, method="hetlora", targets="all-linear", clients_per_step=2)
    how = dataclasses.replace(made.execution, mode="sharded", mesh=mesh)
    made = dataclasses.replace(made, execution=how)
    assets = build.load_assets(made, weights=False)
    found = cost.needs(made, assets).memory
    assert found.total == pytest.approx(compiled_bytes(made, assets), rel=TOLERANCE)


def test_memory_parts_scale_with_their_causes(folder):
    """Recomputation and smaller batches cost fewer activations; the base and traffic stay."""
    found = {
        remat: cost.needs(made, build.load_assets(made, weights=False))
        for remat in (False, True)
        if (made := make(folder, method="flora", remat=remat))
    }
    whole, less = found[False].memory, found[True].memory
    assert less.activations < 0.8 * whole.activations
    assert less._replace(activations=0) == whole._replace(activations=0)
    assert found[False].up == found[True].up
    # FLoRA's server keeps the adapted kernels, HetLoRA's does not.
    plain = make(folder, method="hetlora")
    other = cost.needs(plain, build.load_assets(plain, weights=False)).memory
    kernels = 2 * 4 * (128 * 128 + 128 * 64)
    assert whole.server - other.server == kernels


def test_every_method_has_an_estimate(folder, monkeypatch):
    """Including methods whose traffic depends on client state."""
    monkeypatch.setattr(memory, "activations", lambda *_: 0)  # slow, and the same for all, as is
    monkeypatch.setattr(estimate, "step_flops", lambda spec, *_: dict.fromkeys(spec.shapes, 1))
    assets = build.load_assets(make(folder, method="flora"), weights=False)
    for name in methods.METHODS:
        made = make(folder, method=name)
        federation = dataclasses.replace(made.federation, ranks="fixed(rank=4)")
        found = cost.needs(dataclasses.replace(made, federation=federation), assets)
        assert found.up > 0 and found.down > 0


def test_a_mesh_divides_the_cohort_and_the_base(folder):
    """Eight devices: what each of them keeps, and how much of the work it does."""
    plain = make(folder, method="hetlora")
    how = dataclasses.replace(plain.execution, mode="sharded", mesh=(4, 2))
    assets = build.load_assets(plain, weights=False)
    one, parts = (
        cost.needs(made, assets) for made in (plain, dataclasses.replace(plain, execution=how))
    )
    assert one.devices[1:] == (1, 1, 1) and parts.devices[1:] == (4, 2, 1)
    assert one.memory.cohort == 4 and parts.memory.cohort == 1
    assert parts.memory.base == pytest.approx(one.memory.base / 2, rel=0.01)
    # Four clients, each on two devices: the one with the most takes longest.
    assert one.round_flops / 8 <= parts.round_flops < one.round_flops / 2
    assert (one.flops, one.up, one.down) == (parts.flops, parts.up, parts.down)


@pytest.mark.parametrize("mesh", [pytest.param("1 1", marks=pytest.mark.slow), "4 2"])
def test_encoder_has_an_estimate(mesh, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_LORA_CACHE", str(tmp_path))
    words = ["run", *small(batch=8), "--explain"]
    if mesh != "1 1":
        words += ["--mode=sharded", "--mesh", *mesh.split()]
    assert main.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    clients, model = mesh.split()
    count = int(clients) * int(model)
    assert lines[0] == f"{count} x cpu; mesh: clients {clients} x model {model}"
    assert lines[1].startswith("one program with ") and "8 x 8 (64)" in lines[1]
    assert any(line.startswith("sent in a round") for line in lines)
    (last, *advice) = lines[-1 - (model != "1") :]
    assert last.startswith("local training of a round, about")
    assert all("give all devices to the axis clients first" in line for line in advice)
    assert "GFLOP/s, which a large float32 product reaches here just now" in last


def test_explain_prints_the_estimate_and_writes_no_files(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [
        "run", f"--task={SPEC}", f"--data-dir={folder}", f"--model={folder}", "--clients=4",
        "--cohort=4", "--ranks=fixed(rank=2)", "--explain", f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    assert main.main(words) == 0
    printed = capsys.readouterr().out
    for part in ("base model", "activations", "device memory, about", "sent in a round"):
        assert part in printed
    assert not (tmp_path / "out").exists()


def test_flops_of_a_step_match_a_hand_count(folder):
    """Of a step: the frozen matrices forward and, for the states, backward; factors three times."""
    made = make(folder, method="flora", targets="all-linear")
    assets = build.load_assets(made, weights=False)
    c = LLAMA
    h, i, kv = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // 2
    shapes = [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]
    rank, tokens = 8, 4 * assets.train.ids.shape[1]
    frozen = 2 * sum(a * b for a, b in shapes) * tokens
    factors = 2 * sum((a + b) * rank for a, b in shapes) * tokens
    attention = 2 * 2 * h * tokens * assets.train.ids.shape[1]
    vocabulary = 2 * h * c["vocab_size"] * (tokens - 4)
    forward = c["num_hidden_layers"] * (frozen + factors + attention) + vocabulary
    backward = c["num_hidden_layers"] * (frozen + 2 * factors + 2 * attention) + vocabulary
    # The first layer's inputs are frozen: nothing goes on to what is before its factors.
    first = tokens * 2 * sum(a * b + a * rank for a, b in shapes[:3])
    assert cost.needs(made, assets).flops == forward + backward - first


def test_flops_in_loops_are_multiplied_by_the_iterations():
    x = jnp.ones((4, 4))
    loop = lambda x: jax.lax.scan(lambda y, _: (jax.checkpoint(jnp.dot)(y, x), None), x, length=5)  # noqa: E731
    assert flops.of(loop, x) == 5 * 2 * 4**3
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)  # noqa: E731
    assert flops.of(either, x) == 2 * 4**3
    with pytest.raises(ValueError, match="unknown length"):
        flops.of(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ x, x), x)

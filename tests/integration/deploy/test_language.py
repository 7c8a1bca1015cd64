"""A federation for a decoder, server and sites in one process, leaves what a simulation leaves."""

import dataclasses
import json
import pathlib

import pytest

from fedjax_lora.deploy import client, server, tasks
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.runs import config
from fedjax_lora.runs.run import run
from tests._helpers import small_instructions

SITES = ("p0", "p1", "p2")
COLUMNS = {"instruction": "say", "completion": "said"}
ADAPTER = pathlib.Path("adapter", "adapter_model.safetensors")


def divided(folder: pathlib.Path) -> dict[str, str]:
    """A file for each site, of the helper's examples of each person."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for site in SITES:
        own = [json.dumps(row) for row in rows if row["who"] == site]
        (folder / f"{site}.jsonl").write_text("\n".join(own))
    return {site: str(folder / f"{site}.jsonl") for site in SITES}


def options_of(folder: pathlib.Path, task: str) -> config.RunConfig:
    made = small_instructions.make(folder, method="hlora", task=task)
    fed = dataclasses.replace(made.federation, ranks="table(ranks=[1, 2, 3])", min_examples=1)
    data = dataclasses.replace(made.data, validation_examples=0, data_dir=None, max_length=15)
    execution = dataclasses.replace(made.execution, mode="loop", step_shapes=1)
    return dataclasses.replace(made, federation=fed, data=data, execution=execution)


@pytest.mark.slow
def test_sites_with_instructions_leave_the_adapter_of_a_simulation(tmp_path):
    files = divided(small_instructions.fill(tmp_path))
    shared = "instructions(answer_tokens=6, format='plain')"
    spec = FederationSpec(
        config=options_of(tmp_path, shared), classes=(), sites=SITES, ranks=(1, 2, 3)
    )
    sites = [
        client.Client(spec, client.SiteOptions(name=site, train=files[site], columns=COLUMNS))
        for site in SITES
    ]
    assert "task: texts to generate" in client.describe(sites[0])
    server.serve(
        spec,
        lambda data: {k: site.register(data) for k, site in enumerate(sites)},
        lambda round, messages: {k: sites[k].fit(data) for k, data in messages.items()},
        task=tasks.with_file(shared, str(tmp_path / "test.jsonl"), COLUMNS),
        out=tmp_path / "real",
    )
    name, own = "instructions", {**COLUMNS, "answer_tokens": 6, "format": "plain"}
    given = {"train": [*files.values()], "test": str(tmp_path / "test.jsonl"), "client_files": True}
    run(options_of(tmp_path, tasks.written(name, own | given)), out=tmp_path / "simulated")
    real, simulated = (tmp_path / x / ADAPTER for x in ("real", "simulated"))
    assert real.read_bytes() == simulated.read_bytes()

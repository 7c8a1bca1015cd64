"""Run folders of version 0.1 are read: its config fields, its checkpoints and its adapters."""

import io
import json
import logging
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError, models
from fedjax_lora.cli import main
from fedjax_lora.core.version import __version__
from fedjax_lora.interop import load_adapter
from fedjax_lora.runs import checkpoints
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints.checksums import write_checksums
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.resume import read_config
from tests._helpers import tiny_runs

SAVED = pathlib.Path(__file__).parent / "version_0_1"
CONFIG = tiny_runs.change(tiny_runs.CONFIG, {"execution.clients_per_step": 2})
TOLERANCE = 1e-4  # another version of JAX may draw and sum a little differently


def copied(to: pathlib.Path) -> pathlib.Path:
    """The run that was stopped after two rounds, on the model as this version of JAX draws it."""
    folder = shutil.copytree(SAVED / "stopped", to)
    checkpoint = folder / checkpoints.FOLDER / "2"
    about = json.loads((checkpoint / "about.json").read_text())
    about["base"] = tiny_runs.assets().model.fingerprint
    (checkpoint / "about.json").write_text(json.dumps(about))
    write_checksums(checkpoint)
    return folder


@pytest.fixture
def stopped(tmp_path) -> pathlib.Path:
    return copied(tmp_path / "run")


class Resumed(NamedTuple):
    """A run of version 0.1 that this version has ended: its result, rounds and log."""

    result: Result
    seen: list[dict[str, Any]]
    log: str


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Resumed:
    folder, seen, log = copied(tmp_path_factory.mktemp("runs") / "run"), [], io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("fedjax_lora").addHandler(handler)
    result = fl.run(
        CONFIG, out=folder, assets=tiny_runs.assets(), resume=True, on_round=seen.append
    )
    logging.getLogger("fedjax_lora").removeHandler(handler)
    return Resumed(result, seen, log.getvalue())


def test_saved_files_are_those_of_version_0_1():
    config = json.loads((SAVED / "stopped" / "config.json").read_text())
    assert "version" not in config and config["execution"]["wave"] == 2
    newest = checkpoints.latest(SAVED / "stopped")
    assert "told" in newest.about["arrays"] and "logged_rank" not in newest.about["arrays"]
    assert newest.about["environment"]["packages"]["fedjax-lora"] == "0.1.0"


@pytest.mark.parametrize("folder", ["stopped", "finished"])
def test_config_of_0_1_is_read_with_its_present_names(folder):
    assert read_config(SAVED / folder) == CONFIG


def test_stopped_run_of_0_1_resumes_to_the_same_result(resumed):
    result, stopped = resumed.result, resumed.result.out
    assert [record["round"] for record in resumed.seen] == [3, 4]
    assert "another packages.fedjax-lora" in resumed.log
    lines = (SAVED / "finished" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    names = [record.keys() - {"clients"} for record in result.records]  # 0.1 did not write them
    assert names == [record.keys() for record in records]
    for record, expected in zip(result.records, records, strict=True):
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, rel=TOLERANCE), name
    written = json.loads((stopped / "config.json").read_text())
    assert written["version"] == __version__ and "wave" not in written["execution"]
    newest = checkpoints.latest(stopped)
    assert "logged_rank" in newest.about["arrays"] and "told" not in newest.about["arrays"]


def test_run_with_a_former_partition_is_not_resumed(stopped, tmp_path):
    config = tiny_runs.change(CONFIG, {"federation.partition": "dirichlet(alpha=1.0)"})
    checkpoint = stopped / checkpoints.FOLDER / "2"
    about = json.loads((checkpoint / "about.json").read_text())
    about["config"]["federation"]["partition"] = config.federation.partition
    (checkpoint / "about.json").write_text(json.dumps(about))
    write_checksums(checkpoint)
    saved = json.loads((stopped / "config.json").read_text())
    saved["federation"]["partition"] = config.federation.partition
    (stopped / "config.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"version 0\.1\.0, which rounded the shares of the parti"):
        fl.run(config, out=stopped, assets=tiny_runs.assets(), resume=True)


def test_adapter_of_a_finished_0_1_run_is_read(resumed):
    model = models.tiny(layers=1, vocab_size=64)
    loaded = load_adapter(SAVED / "finished" / "adapter", model)
    result = resumed.result
    assert loaded.adapter.keys() == result.adapter.keys()
    for path, pair in loaded.adapter.items():
        for ours, theirs in zip(pair, result.adapter[path], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize(("folder", "state"), [("stopped", "not finished"), ("finished", "finish")])
def test_run_folders_of_0_1_can_be_inspected(folder, state, capsys):
    assert main.main(["inspect", str(SAVED / folder)]) == 0
    printed = capsys.readouterr().out
    assert "execution.clients_per_step = 2" in printed and f"of 4, {state}" in printed


def test_changed_config_of_a_0_1_folder_is_refused_with_its_present_name(stopped):
    other = tiny_runs.change(CONFIG, {"local.batch": 4})
    with pytest.raises(InputError, match=r"different run \(local.batch\); choose another"):
        fl.run(other, out=stopped, assets=tiny_runs.assets())


def test_config_of_a_later_version_is_refused_with_its_version(tmp_path):
    values = configs.to_dict(CONFIG) | {"version": "0.9.0"}
    assert configs.from_dict(values) == CONFIG, "as long as all of its fields are known"
    values["execution"] |= {"later": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"written by version 0\.9\.0 of fedjax-lora, and version"):
        configs.load(tmp_path / "config.json")


def test_renamed_field_is_answered_with_its_present_name():
    values = {"version": __version__, "execution": {"wave": 2}}
    with pytest.raises(InputError, match=r"execution\.wave is now execution\.clients_per_step"):
        configs.from_dict(values)
    values = {"execution": {"wave": 2, "clients_per_step": 4}}
    with pytest.raises(InputError, match=r"is now execution\.clients_per_step; leave out"):
        configs.from_dict(values)
    assert configs.from_dict({"execution": {"wave": 2}}).execution.clients_per_step == 2

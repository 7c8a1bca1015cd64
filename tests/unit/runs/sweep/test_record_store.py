"""One file per finished run, written atomically."""

import json
import types

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import FederationConfig, RunConfig
from fedjax_lora.runs.sweep import record_store

CONFIG = RunConfig(seed=3)
RESULT = types.SimpleNamespace(records=[{"round": 1}], summary={"accuracy": 0.5})


def must_not_run():
    raise AssertionError("this was run already")


def test_finished_run_is_written_once(tmp_path):
    path = tmp_path / "runs" / "a.json"
    record = record_store.run_once(path, CONFIG, lambda: RESULT)
    assert record["history"] == RESULT.records and record["summary"] == RESULT.summary
    assert configs.from_dict(record["config"]) == CONFIG
    assert record_store.run_once(path, CONFIG, must_not_run) == record
    assert record_store.finished(tmp_path / "runs") == {CONFIG: record}


def test_failed_run_leaves_no_record(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_store.run_once(tmp_path / "a.json", CONFIG, stopped)
    assert record_store.finished(tmp_path) == {}
    assert record_store.run_once(tmp_path / "a.json", CONFIG, lambda: RESULT)["history"]


def test_records_are_written_atomically(tmp_path, monkeypatch):
    """Stopped between writing and naming the file: there is no run, and it can be repeated."""

    def stopped(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            record_store.run_once(tmp_path / "a.json", CONFIG, lambda: RESULT)
    assert record_store.finished(tmp_path) == {}
    record_store.run_once(tmp_path / "a.json", CONFIG, lambda: RESULT)
    assert list(record_store.finished(tmp_path)) == [CONFIG]


def test_record_of_another_config_is_refused(tmp_path):
    path = tmp_path / "a.json"
    record_store.run_once(path, CONFIG, lambda: RESULT)
    with pytest.raises(InputError, match="a run of another config"):
        record_store.run_once(path, RunConfig(seed=4), must_not_run)


def test_record_with_a_former_partition_is_not_reused(tmp_path):
    summary = {"accuracy": 0.5, "packages": {"fedjax-lora": "0.1.0"}}
    former = types.SimpleNamespace(records=[{"round": 1}], summary=summary)
    equal = RunConfig(federation=FederationConfig(partition="iid"))
    for name, config in (("a", CONFIG), ("b", equal)):
        record_store.run_once(tmp_path / f"{name}.json", config, lambda: former)
    assert record_store.run_once(tmp_path / "b.json", equal, must_not_run)["summary"] == summary
    with pytest.raises(InputError, match=r"version 0\.1\.0, which rounded .* dirichlet.*otherwise"):
        record_store.run_once(tmp_path / "a.json", CONFIG, must_not_run)


def test_record_without_newer_fields_is_read(tmp_path):
    path = tmp_path / "a.json"
    record = record_store.run_once(path, CONFIG, lambda: RESULT)
    del record["config"]["federation"]["heads"]
    path.write_text(json.dumps(record))
    assert record_store.run_once(path, CONFIG, must_not_run) == record


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {"sed": 1}}',
                                  '{"config": {}, "history": [], "summary": {}}'])  # fmt: skip
def test_file_without_a_finished_run_is_refused_with_its_name(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x.json is not a finished run"):
        record_store.finished(tmp_path)

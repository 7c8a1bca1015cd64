"""Trackers: logged values are read back with the trackers' own readers."""

import contextlib
import glob
import importlib
import json
import logging
import pathlib

import pytest

from fedjax_lora import InputError, RunConfig
from fedjax_lora.runs import tracking
from fedjax_lora.runs.tracking import TRACKERS, numbers, session, track

CONFIG = RunConfig(seed=3)
RECORDS = [
    {
        "round": 1,
        "loss": 2.5,
        "up_bytes": 10,
        "accuracy": None,
        "dropped": [],
        "train_seconds": 1.0,
    },
    {"round": 2, "loss": 1.5, "up_bytes": 20, "accuracy": 0.5, "dropped": [3], "noise": {"a": 0.1}},
    {"round": 3, "loss": 0.5, "up_bytes": 30, "accuracy": 0.75, "dropped": []},
]
LOSSES = [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_logged_numbers_leave_out_missing_values():
    assert numbers(RECORDS[1]) == {"loss": 1.5, "up_bytes": 20, "accuracy": 0.5, "noise/a": 0.1}


def make(folder):
    """What a run has done to its folder when the first round is recorded."""
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("wandb(projet='a')", "projet"),
        ("mlflow(1)", ""),
    ],
)
def test_unknown_trackers_and_options_are_refused(spec, words):
    with pytest.raises(InputError) as error:
        tracking.check_trackers([spec])
    assert words in str(error.value)


def test_missing_tracker_package_is_named(monkeypatch):
    monkeypatch.setitem(session._PACKAGES, "wandb", "no_such_package")
    with pytest.raises(InputError, match=r"pip install 'fedjax-lora\[wandb\]'"):
        tracking.check_trackers(["wandb"])


@pytest.fixture
def own(monkeypatch):
    """A tracker that fails where the test says so."""
    written, fails = [], set()

    def factory():
        @contextlib.contextmanager
        def tracker(run):
            if "start" in fails:
                raise OSError("no network\nsecond line")

            def write(record):
                if "round" in fails:
                    raise OSError("disk full")
                written.append(record["round"])

            yield write
            if "end" in fails:
                raise OSError("not sent")

        return tracker

    monkeypatch.setitem(TRACKERS, "own", factory)
    monkeypatch.setitem(session._PACKAGES, "own", "json")
    return written, fails


def test_tracker_that_does_not_start_is_an_error(own, tmp_path):
    own[1].add("start")
    with (
        pytest.raises(InputError, match=r"^Tracker own does not start \(no network\)\.$"),
        track(["own"], CONFIG, tmp_path),
    ):
        pass


@pytest.mark.parametrize("when", ["round", "end"])
def test_tracker_that_fails_during_the_run_is_dropped_with_a_warning(own, when, tmp_path, caplog):
    own[1].add(when)
    with caplog.at_level(logging.WARNING), track(["own"], CONFIG, tmp_path) as on_round:
        on_round(RECORDS[0])
        on_round(RECORDS[1])
    assert caplog.text.count("tracker own") == 1
    assert own[0] == ([] if when == "round" else [1, 2])


def test_tracker_failure_does_not_mask_an_error_of_the_run(own, tmp_path):
    own[1].add("end")
    with pytest.raises(ZeroDivisionError), track(["own"], CONFIG, tmp_path):
        raise ZeroDivisionError


# ------------------------------------------------------------------------------- the real packages


def play(spec, folder, records, **options):
    with track([spec], CONFIG, folder, **options) as on_round:
        make(folder)
        for record in records:
            on_round(record)


@pytest.mark.extras
def test_tensorboard_has_each_round_once_after_a_resume(tmp_path):
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    play("tensorboard", out, RECORDS[:2])
    play("tensorboard", out, RECORDS[1:], resume=True)  # round 2 was after the last checkpoint
    events = reader.EventAccumulator(str(out / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == LOSSES
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(2, 0.5), (3, 0.75)]
    assert "config/text_summary" in events.Tags()["tensors"]
    play("tensorboard", out, RECORDS[:1])  # a new run in its place
    events = reader.EventAccumulator(str(out / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == LOSSES[:1]


def log_records(data: bytes, *, header: int = 7, block: int = 2**15):
    """Yield the records of a log in LevelDB's format, which W&B has for offline runs."""
    at, whole = header, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.extras
def test_wandb_offline_run_has_every_round(tmp_path, monkeypatch):
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SILENT", "true")
    play("wandb(project='clients')", tmp_path / "run", RECORDS)
    [file] = glob.glob(str(tmp_path / "wandb" / "offline-run-*" / "*.wandb"))
    rounds, options, project = [], {}, None
    for data in log_records(pathlib.Path(file).read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json)
                     for item in record.history.item}  # fmt: skip
            rounds.append((items["round"], items["loss"]))
        if record.HasField("run"):
            project = record.run.project
            options |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
    assert rounds == LOSSES and project == "clients"
    assert options["seed"] == 3
    ids = json.loads((tmp_path / "run" / tracking.IDS).read_text("utf-8"))
    assert ids["wandb"] in file


@pytest.mark.extras
def test_mlflow_resume_continues_its_run(tmp_path):
    package = importlib.import_module("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spec, out = f"mlflow(experiment='clients', uri={uri!r})", tmp_path / "run"
    play(spec, out, RECORDS[:2])
    play(spec, out, RECORDS[2:], resume=True)
    client = package.MlflowClient(uri)
    experiment = client.get_experiment_by_name("clients")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == LOSSES
    assert run.data.params["seed"] == "3" and run.info.status == "FINISHED"


@pytest.mark.extras
def test_trackio_run_has_every_round(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    play("trackio(project='clients')", tmp_path / "run", RECORDS)
    logs = storage.get_logs("clients", "run")
    assert [(x["step"], x["loss"]) for x in logs] == LOSSES

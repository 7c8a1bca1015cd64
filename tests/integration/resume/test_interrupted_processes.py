"""Real processes, killed and asked to stop.

`experiments.robustness.interruptions` has the long series.
"""

import signal
from collections.abc import Iterator

import numpy as np
import pytest

from experiments.robustness.interruptions import commands, harness, trials
from fedjax_lora.cli.main import main
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.compilation import programs


@pytest.fixture(scope="module", autouse=True)
def quick_processes() -> Iterator[None]:
    """Processes compile as this one does, which goes on with what they have left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> harness.Workspace:
    """A small run that nothing has happened to."""
    target = harness.prepare(tmp_path_factory.mktemp("site"))
    done = harness.call(target, target.command(f"--out={target.path / 'whole'}"))
    assert done.status == 0, done.output
    return target


@pytest.fixture(scope="module")
def assets(target) -> Assets:
    return load_assets(configs.load(target.path / "whole" / "config.json"))


def test_run_killed_during_a_checkpoint_resumes(tmp_path, capsys):
    """The run that nothing happens to, and the resumed one, are those of this process."""
    target = harness.prepare(tmp_path / "site", rounds=12)
    words = target.command(f"--out={target.path / 'whole'}")[len(harness.CLI) :]
    assert main(["run", *words]) == 0, capsys.readouterr()
    assets = load_assets(configs.load(target.path / "whole" / "config.json"))
    trial = trials.killed(target, "a checkpoint", np.random.default_rng(0), assets, programs())
    assert trial["same"] and trial["status"] == -signal.SIGKILL
    assert 0 < trial["resumed"] <= trial["rounds"] < target.rounds


@pytest.mark.slow
@pytest.mark.parametrize("aim", trials.MOMENTS)
def test_killed_run_resumes(aim, target, assets):
    assert trials.killed(target, aim, np.random.default_rng(1), assets, programs())["same"]


@pytest.mark.slow
def test_repeatedly_killed_run_resumes(target):
    assert trials.again_and_again(target, np.random.default_rng(2))["same"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_finishes_its_round_and_prints_the_resume_command(number, status, target):
    trial = trials.stopped_by_signal(target, number)
    assert trial["same"] and trial["reported"] and trial["status"] == status


@pytest.mark.slow
@pytest.mark.parametrize("trial", [trials.full_disk, trials.read_only])
def test_unwritable_folders_are_reported(trial, target):
    found = trial(target)
    assert found["same"] and found["reported"] and found["status"] == 2


@pytest.mark.slow
def test_second_run_in_a_folder_is_refused(target):
    *refused, after = (trial for _, trial in trials.second_run(target))
    assert len(refused) == 2
    assert all(trial["reported"] and trial["status"] == 2 for trial in refused)
    assert after["same"]


@pytest.mark.slow
def test_damaged_checkpoints_are_skipped(target):
    found = dict(trials.damaged(target, np.random.default_rng(3)))
    assert len(found) > 20
    assert all(trial["reported"] and trial["same"] for trial in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_commands_leave_no_partial_output(name, number, target):
    trial = commands.stopped(target, name, number, np.random.default_rng(4))
    assert trial["reported"] and trial["whole_files"] and trial["same"], trial


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.COMMANDS)
def test_full_disk_is_reported_by_commands(name, target):
    trial = commands.full_disk(target, name)
    assert trial["reported"] and trial["whole_files"] and trial["same"], trial

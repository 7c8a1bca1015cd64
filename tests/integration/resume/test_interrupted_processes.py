"""Real processes, killed and asked to stop; `experiments.robustness.interruptions` has the long series."""

import signal
from collections.abc import Iterator

import numpy as np
import pytest

from experiments.robustness.interruptions import harness, trials
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
def site(tmp_path_factory) -> harness.Site:
    """A small run that nothing has happened to."""
    site = harness.prepare(tmp_path_factory.mktemp("site"))
    done = harness.call(site, site.command(f"--out={site.path / 'whole'}"))
    assert done.status == 0, done.output
    return site


@pytest.fixture(scope="module")
def assets(site) -> Assets:
    return load_assets(configs.load(site.path / "whole" / "config.json"))


def test_a_kill_while_a_checkpoint_is_written(site, assets):
    trial = trials.killed(site, "a checkpoint", np.random.default_rng(0), assets, programs())
    assert trial["same"] and trial["status"] == -signal.SIGKILL
    assert 0 < trial["resumed"] <= trial["rounds"]


@pytest.mark.slow
@pytest.mark.parametrize("aim", trials.MOMENTS)
def test_kills(aim, site, assets):
    assert trials.killed(site, aim, np.random.default_rng(1), assets, programs())["same"]


@pytest.mark.slow
def test_a_run_killed_again_and_again(site):
    assert trials.again_and_again(site, np.random.default_rng(2))["same"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_asked_to_stop_finishes_its_round_and_says_how_to_go_on(number, status, site):
    trial = trials.asked(site, number)
    assert trial["same"] and trial["told"] and trial["status"] == status


@pytest.mark.slow
@pytest.mark.parametrize("trial", [trials.full_disk, trials.read_only])
def test_folders_that_cannot_be_written(trial, site):
    found = trial(site)
    assert found["same"] and found["told"] and found["status"] == 2


@pytest.mark.slow
def test_two_runs_in_a_folder(site):
    *refused, after = (trial for _, trial in trials.second_run(site))
    assert len(refused) == 2
    assert all(trial["told"] and trial["status"] == 2 for trial in refused)
    assert after["same"]


@pytest.mark.slow
def test_damaged_checkpoints(site):
    found = dict(trials.damaged(site, np.random.default_rng(3)))
    assert len(found) > 20
    assert all(trial["told"] and trial["same"] for trial in found.values())

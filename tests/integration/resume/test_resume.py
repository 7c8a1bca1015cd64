"""A resumed run writes the same bytes as an uninterrupted one, for every method."""

import errno
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError, methods, models
from fedjax_lora.core.errors import Stopped
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.runs import checkpoints
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints.checksums import write_checksums
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.folder import RunFolder
from fedjax_lora.runs.outputs import Result
from tests._helpers import problems, tiny_runs
from tests._helpers.tiny_runs import CONFIG, change

SHARED = programs()
ASSETS = tiny_runs.assets()


def run(config, out, **options) -> Result:
    return fl.run(config, out=out, assets=ASSETS, programs=SHARED, **options)


def interrupt(folder: pathlib.Path, copy: pathlib.Path, after: int) -> pathlib.Path:
    """What a killed run leaves: an older checkpoint, a torn line, half an adapter."""
    shutil.copytree(folder, copy)
    for checkpoint in (copy / checkpoints.FOLDER).glob("[0-9]*"):
        if int(checkpoint.name) > after:
            shutil.rmtree(checkpoint)
    (copy / "summary.json").unlink()
    (copy / "adapter").rename(copy / ".adapter.partial")
    for name in ("metrics.jsonl", "timing.jsonl", "checkpoints/history.jsonl"):
        (copy / name).write_text((copy / name).read_text()[:-3])
    return copy


AROUND = {
    "updates, dropout, server_optimizer, measured": {
        "federation.method": "zero_padding",
        "federation.server_optimizer": "adam(learning_rate=0.01)",
        "federation.updates": ("gaussian_noise(multiplier=1.0, norm=0.5)", "int8()"),
        "lora.lora_dropout": 0.2,
        "local.prox": 0.1,
        "execution.measure": True,
    },
    "promoted_fresh": {
        "federation.ranks": "loss_based(low=1, high=4, share=0.4, promoted='fresh')"
    },
    "scored_every_round": {
        "federation.ranks": "loss_based(low=1, high=4, share=0.4, every=1, scored='cohort')",
        "federation.method": "replication",
    },
    "local_heads, sharded": {
        "federation.heads": "local",
        "federation.method": "fedsa_lora",
        "federation.ranks": "fixed(rank=2)",
        "execution.mode": "sharded",
    },
}
CASES = {name: tiny_runs.with_method(name) for name in methods.METHODS} | AROUND
ALONE = {"flora", "fedrora"}
"""Methods whose state no other case has: kernels, and coefficients with what clients keep. Rates
depend on the number of the round in all cases; ranks change in `scored_every_round`."""
ALIKE = CASES.keys() - AROUND.keys() - ALONE | {"promoted_fresh"}
"""What has a state like another case; scores decide the ranks of `scored_every_round` as well."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in ALIKE)) for case in CASES],
)
def test_resumed_run_writes_identical_bytes(case, tmp_path):
    config = change(CONFIG, CASES[case])
    whole = run(config, tmp_path / "whole")
    copy = interrupt(whole.out, tmp_path / "copy", after=2)
    told = []
    resumed = run(config, copy, resume=True, on_round=told.append)
    assert [record["round"] for record in told] == [3, 4]
    assert tiny_runs.left(copy) == tiny_runs.left(whole.out)
    problems.assert_same_bits(resumed.state, whole.state)
    np.testing.assert_array_equal(resumed.rank, whole.rank)
    assert resumed.records == json.loads(json.dumps(whole.records))
    assert problems.changed(whole.state, checkpointed_state(whole, 2))
    assert [p.name for p in copy.glob(".*")] == [".lock"]
    timing = (copy / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in timing] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Result:
    return run(CONFIG, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def copy(whole, tmp_path) -> pathlib.Path:
    """A folder whose run was killed after its second round."""
    return interrupt(whole.out, tmp_path / "copy", after=2)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_stopped_run_has_a_checkpoint_of_its_last_round(whole, tmp_path):
    """Which is not one that was due."""
    seen = []
    with pytest.raises(Stopped, match="stopped after round 1 of 4"):
        run(CONFIG, tmp_path / "run", on_round=seen.append, stop=lambda: len(seen) == 0)
    assert [record["round"] for record in seen] == [1]
    assert checkpoints.latest(tmp_path / "run").round == 1
    run(CONFIG, tmp_path / "run", resume=True)
    assert tiny_runs.left(tmp_path / "run") == tiny_runs.left(whole.out)


def test_run_asked_to_stop_in_its_last_round_finishes(tmp_path):
    config = change(CONFIG, {"federation.rounds": 1})
    assert run(config, tmp_path / "run", stop=lambda: True).summary["rounds"] == 1


def test_resume_without_a_checkpoint_restarts_with_a_warning(whole, copy, caplog):
    shutil.rmtree(copy / checkpoints.FOLDER)
    (copy / "adapter").mkdir()  # what a kill in the middle of an earlier attempt left
    (copy / "adapter" / "adapter_config.json").write_text("{")
    run(CONFIG, copy, resume=True)
    assert f"{copy} holds no complete checkpoint: the run starts from round 0" in caplog.text
    assert tiny_runs.left(copy) == tiny_runs.left(whole.out)


def test_finished_run_is_returned_unchanged(whole):
    before = contents(whole.out)
    again = run(CONFIG, whole.out, resume=True, on_round=lambda record: pytest.fail("a round ran"))
    assert contents(whole.out) == before
    assert again.summary == whole.summary
    problems.assert_same_bits(again.state, whole.state)


def test_finished_run_without_checkpoints_is_kept(whole, tmp_path):
    shutil.copytree(whole.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / checkpoints.FOLDER)
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match="is finished and holds no checkpoint"):
        run(CONFIG, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_run_killed_while_writing_results_rewrites_them(whole, tmp_path):
    shutil.copytree(whole.out, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    run(CONFIG, tmp_path / "run", resume=True, on_round=lambda record: pytest.fail("a round ran"))
    assert tiny_runs.left(tmp_path / "run") == tiny_runs.left(whole.out)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 4


REFUSED = {
    "federation.method": "hlora",
    "federation.clients": 6,
    "federation.heads": "local",
    "federation.server_optimizer": "sgd",
    "federation.updates": ("int8()",),
    "local.learning_rate": 0.1,
    "local.schedule": "constant",
    "lora.alpha": 3.0,
    "data.validation_examples": 5,
}


@pytest.mark.parametrize("name", REFUSED)
def test_changed_config_is_refused_and_the_field_named(name, copy):
    before = contents(copy)
    with pytest.raises(InputError, match=f"with these options: {name} was .* cannot become"):
        run(change(CONFIG, {name: REFUSED[name]}), copy, resume=True)
    assert contents(copy) == before


def test_all_changed_fields_are_named_with_and_without_a_checkpoint(copy):
    shutil.rmtree(copy / checkpoints.FOLDER)
    wrong = change(CONFIG, {"federation.method": "hlora", "local.batch": 4})
    with pytest.raises(InputError, match=r"federation\.method was .*; local\.batch was 2"):
        run(wrong, copy, resume=True)


def test_extending_a_run_must_keep_past_learning_rates(copy, tmp_path):
    with pytest.raises(InputError, match=r"rounds was 4 and cannot become 6 with schedule 'linear"):
        run(change(CONFIG, {"federation.rounds": 6}), copy, resume=True)
    with pytest.raises(InputError, match=r"rounds is 1, but 2 rounds are done"):
        run(change(CONFIG, {"federation.rounds": 1}), copy, resume=True)


@pytest.mark.parametrize("begun", [2, 3])
def test_run_with_constant_rate_can_be_extended(begun, tmp_path):
    steady = {"local.schedule": "constant", "federation.rounds": 3}
    whole = run(change(CONFIG, steady), tmp_path / "whole")
    run(change(CONFIG, steady | {"federation.rounds": begun}), tmp_path / "run")
    run(change(CONFIG, steady), tmp_path / "run", resume=True)
    ours, theirs = (tiny_runs.left(path) for path in (tmp_path / "run", whole.out))
    lines = [json.loads(line) for line in ours.pop("metrics.jsonl").splitlines()]
    wanted = [json.loads(line) for line in theirs.pop("metrics.jsonl").splitlines()]
    assert ours == theirs
    # The last round of the shorter run was evaluated, as that of a run always is.
    extra = {"accuracy", "loss", "validation_accuracy", "validation_loss"} if begun == 2 else set()
    assert set(lines[1]) - set(wanted[1]) == extra
    assert [{k: x[k] for k in y} for x, y in zip(lines, wanted, strict=True)] == wanted
    assert configs.load(tmp_path / "run" / "config.json") == change(CONFIG, steady)


def test_run_resumes_in_another_mode_within_tolerance(whole, copy):
    """And be evaluated and saved otherwise, and find its data elsewhere."""
    free = {"execution.mode": "sharded", "execution.devices": 2, "execution.eval_every": 1}
    free |= {"execution.checkpoint_every": 1, "execution.checkpoint_keep": 1}
    free |= {"data.data_dir": "elsewhere"}
    resumed = run(change(CONFIG, free), copy, resume=True)
    problems.assert_close(resumed.state, whole.state)
    assert resumed.records[:2] == json.loads(json.dumps(whole.records[:2]))
    assert "accuracy" in resumed.records[3]


def test_another_base_and_other_data_are_refused(copy):
    before = contents(copy)
    other = ASSETS._replace(model=models.tiny(layers=1, vocab_size=64, key=jax.random.key(9)))
    few = ASSETS.train._replace(ids=ASSETS.train.ids[:, ::-1].copy())
    other = other._replace(train=few)
    sentence = "the base model is other than when.*; the examples are other than when"
    with pytest.raises(InputError, match=sentence):
        fl.run(CONFIG, out=copy, assets=other, resume=True)
    assert contents(copy) == before


def test_changed_package_versions_are_logged(copy, caplog):
    (newest,) = (copy / checkpoints.FOLDER).glob("[0-9]*")
    about = json.loads((newest / "about.json").read_text())
    about["environment"]["packages"]["jax"] = "0.0.1"
    (newest / "about.json").write_text(json.dumps(about))
    write_checksums(newest)
    run(CONFIG, copy, resume=True)
    assert "another packages.jax than it began with" in caplog.text


def test_damaged_checkpoint_falls_back_to_the_previous_one(whole, tmp_path, caplog):
    config = change(CONFIG, {"execution.checkpoint_keep": 9})
    run(config, tmp_path / "run")
    newest = tmp_path / "run" / checkpoints.FOLDER / "4"
    (newest / "about.json").write_bytes((newest / "about.json").read_bytes()[:-9])
    (tmp_path / "run" / "summary.json").unlink()
    told = []
    run(config, tmp_path / "run", resume=True, on_round=told.append)
    assert f"{newest} is damaged and not used: the file about.json has changed" in caplog.text
    assert [record["round"] for record in told] == [3, 4]
    assert checkpoints.latest(tmp_path / "run").round == 4
    assert tiny_runs.left(tmp_path / "run") == tiny_runs.left(whole.out)


def test_folder_is_locked_by_its_run(whole, copy):
    with RunFolder.claim(copy, CONFIG, resume=True):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="Another run is writing to"):
                run(CONFIG, copy, **options)
    run(CONFIG, copy, resume=True)


def test_runs_started_at_once_do_not_share_a_folder(tmp_path):
    """Both have found nothing there; the second to write is refused."""
    one, other = (RunFolder.claim(tmp_path / "run", CONFIG) for _ in range(2))
    with one:
        one.start(CONFIG)
        with pytest.raises(InputError, match="Another run is writing to"):
            other.start(CONFIG)
    with pytest.raises(InputError, match="holds this run already"), other:
        other.start(CONFIG)


def test_resume_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="holds no run to resume"):
            run(CONFIG, path, resume=True)
    with pytest.raises(InputError, match="give out"):
        run(CONFIG, None, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_ends_the_run_with_one_sentence(whole, tmp_path, monkeypatch):
    written = checkpoints.manager.save

    def full(folder, progress, *given):
        if progress.round == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(folder, progress, *given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.manager, "save", full)
        with pytest.raises(InputError, match=r"4 cannot be written \(OSError: .*No space left"):
            run(CONFIG, tmp_path / "run")
    assert checkpoints.latest(tmp_path / "run").round == 2
    run(CONFIG, tmp_path / "run", resume=True)
    assert tiny_runs.left(tmp_path / "run") == tiny_runs.left(whole.out)


def checkpointed_state(result: Result, round: int):
    (found,) = [c for c in checkpoints.whole(result.out) if c.round == round]
    like = checkpoints.Progress(
        result.state,
        result.rank,
        result.rank,
        ClientScores.initial(len(result.rank)),
    )
    return checkpoints.restore(found, like).state

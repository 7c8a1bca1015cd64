"""Checkpoints restore bitwise or are refused; the newest and the best are kept."""

import json
import pathlib
import shutil
import subprocess
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fedjax_lora import InputError
from fedjax_lora.core import atomic_io
from fedjax_lora.core.types import LoRA
from fedjax_lora.federated import ClientStore, FederatedState
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.methods.base import ServerState
from fedjax_lora.runs import checkpoints
from fedjax_lora.runs.checkpoints import CheckpointManager, Progress
from fedjax_lora.runs.checkpoints.checkpoint import arrays
from fedjax_lora.runs.checkpoints.checksums import SUMS, verify, write_checksums
from fedjax_lora.runs.checkpoints.history import FILE, HistoryFile
from tests._helpers import problems

ABOUT = {"config": {"seed": 0}, "base": "abc"}


def progress(rounds: int, seed: int = 0) -> Progress:
    """Arrays of all the types that methods and optimizers carry, none of them constant."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    state = FederatedState(
        ServerState({"layer/query": LoRA(draw(2, 6, 3), draw(2, 3, 5))}, {}, (draw(3), ())),
        {"kernel": draw(6, 4), "bias": draw(4)},
        ClientStore({"b": draw(7, 3, 5)}, ()),
        (jnp.asarray(rounds, jnp.int32), {"mask": jnp.asarray(rng.random(4) < 0.5)}),
    )
    scores = ClientScores(rng.normal(size=7) / 3, rng.integers(-1, 5, 7).astype(np.int32))
    scores.value[2] = np.inf
    rank = rng.integers(1, 4, 7).astype(np.int32)
    return Progress(state, rank, rank + 1, scores, rounds, rounds / 7)


def history(rounds: int) -> list[dict]:
    return [{"round": n + 1, "loss": n / 3, "rejected": [n]} for n in range(rounds)]


def save(folder: pathlib.Path, rounds: int, seed: int = 0, score: float | None = None) -> None:
    part = HistoryFile(folder).start(history(rounds))
    checkpoints.save(folder, progress(rounds, seed), part, ABOUT, score)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    for rounds in (1, 2):
        save(folder, rounds, score=0.5 / rounds)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
    """A run's folder with checkpoints of rounds 1 and 2, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


def test_checkpoint_restores_bitwise(saved):
    want = progress(2)
    newest = checkpoints.latest(saved)
    got = checkpoints.restore(newest, progress(0, seed=1))
    problems.assert_same_bits(arrays(got), arrays(want))
    assert (newest.history, got.seconds, got.round) == (history(2), want.seconds, 2)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got.state))


def test_checkpoint_describes_its_run(saved):
    newest = checkpoints.latest(saved)
    assert (newest.round, newest.score, newest.path.name) == (2, 0.25, "2")
    assert newest.about | ABOUT == newest.about
    assert newest.about["arrays"]["state/server/adapter/layer/query/a"] == "float32[2,6,3]"
    assert newest.about["arrays"]["scores/value"] == "float64[7]"


def test_arrays_are_restored_with_the_sharding_of_the_run(saved):
    mesh = jax.make_mesh((8,), ("clients",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = progress(0)
    like = like._replace(state=jax.device_put(like.state, everywhere))
    got = checkpoints.restore(checkpoints.latest(saved), like)
    assert {x.sharding for x in jax.tree.leaves(got.state)} == {everywhere}


def test_all_arrays_with_other_types_or_shapes_are_named(saved):
    like = progress(0)
    head = {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(4, jnp.int32), "extra": jnp.zeros(1)}
    wrong = like._replace(state=like.state._replace(head=head, optimizer=()))
    with pytest.raises(InputError) as raised:
        checkpoints.restore(checkpoints.latest(saved), wrong)
    for words in (
        "state/head/kernel is float32[6,4] but must be float32[6,5]",
        "state/head/bias is float32[4] but must be int32[4]",
        "state/head/extra is missing",
        "state/optimizer/0 is not expected",
    ):
        assert words in str(raised.value)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (folder / checkpoints.FOLDER).iterdir())


def every_file(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_damage_to_any_file_of_a_checkpoint_is_detected(folder, caplog):
    """Truncated, flipped, gone, or one too many: the checkpoint before it is the newest."""
    newest = folder / checkpoints.FOLDER / "2"
    rng = np.random.default_rng(0)
    for path in every_file(newest):
        content = path.read_bytes()
        flipped = bytearray(content) or bytearray(1)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        for wrong in (content[:-1] or b"\n", content[: len(content) // 2], bytes(flipped)):
            if wrong != content:
                path.write_bytes(wrong)
                assert checkpoints.latest(folder).round == 1, path
        path.unlink()
        assert checkpoints.latest(folder).round == 1, path
        assert f"checkpoint {newest} is damaged and not used" in caplog.text
        path.write_bytes(content)
        caplog.clear()
    (newest / "arrays" / "more").write_text("")
    assert checkpoints.latest(folder).round == 1
    (newest / "arrays" / "more").unlink()
    assert checkpoints.latest(folder).round == 2
    assert caplog.text.count("arrays/more is not in SHA256SUMS") == 1


def test_changed_checksum_list_is_detected(tmp_path):
    (tmp_path / "a").write_text("a")
    write_checksums(tmp_path)
    assert verify(tmp_path) is None
    content = (tmp_path / SUMS).read_bytes()
    for bit in range(8 * len(content)):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        (tmp_path / SUMS).write_bytes(wrong)
        assert verify(tmp_path) is not None, bit


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the command sha256sum")
def test_checksum_list_has_the_format_of_sha256sum(folder):
    newest = folder / checkpoints.FOLDER / "2"
    command = ["sha256sum", "--check", "--strict", SUMS]
    done = subprocess.run(command, cwd=newest, check=True, capture_output=True, text=True)
    assert done.stdout.count(": OK\n") == len(every_file(newest)) - 1


def test_partial_checkpoint_is_ignored(folder, monkeypatch):
    """Whichever part of it was written when the process ended."""
    newest = folder / checkpoints.FOLDER / "2"
    newest.rename(newest.with_name(".2.partial"))
    assert checkpoints.latest(folder).round == 1
    with CheckpointManager(folder, ABOUT, keep=2, checkpoints=checkpoints.whole(folder)):
        assert names(folder) == ["1", "history.jsonl"]


def rounds_kept(folder: pathlib.Path) -> list[int]:
    return [checkpoint.round for checkpoint in checkpoints.whole(folder)]


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = [0.1, 0.9, None, 0.9, 0.3, 0.2]
    kept = []
    with CheckpointManager(tmp_path, ABOUT, keep=2) as manager:
        for rounds, score in enumerate(scores, 1):
            manager.save(progress(rounds), history(rounds), score)
            manager.wait()
            kept.append(rounds_kept(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert checkpoints.best(checkpoints.whole(tmp_path)).round == 2
    with CheckpointManager(
        tmp_path, ABOUT, keep=1, checkpoints=checkpoints.whole(tmp_path)
    ) as manager:
        manager.save(progress(7), history(7), None)
    assert rounds_kept(tmp_path) == [2, 7]


def test_round_may_be_saved_again(folder):
    other = progress(2, seed=5)
    with CheckpointManager(folder, ABOUT, keep=2, checkpoints=checkpoints.whole(folder)) as manager:
        manager.save(other, history(2))
    assert rounds_kept(folder) == [1, 2]
    got = checkpoints.restore(checkpoints.latest(folder), progress(0))
    problems.assert_same_bits(arrays(got), arrays(other))


def test_background_save_holds_the_state_at_its_start(tmp_path, monkeypatch):
    """The run continues and donates the saved arrays while the writing thread waits."""
    may_write, real = threading.Event(), checkpoints.manager.save

    def slow(*given):
        assert may_write.wait(60)
        return real(*given)

    monkeypatch.setattr(checkpoints.manager, "save", slow)
    given, want = progress(1), progress(1)
    with CheckpointManager(tmp_path, ABOUT, keep=9) as manager:
        manager.save(given, history(1), always=False)
        given.rank[:] = 0
        jax.tree.map(lambda x: x.delete(), given.state)
        manager.save(
            progress(2), history(2), always=False
        )  # left out: the first is still being written
        may_write.set()
        manager.save(progress(3), history(3))
    assert rounds_kept(tmp_path) == [1, 3]
    got = checkpoints.restore(checkpoints.whole(tmp_path)[0], progress(0))
    problems.assert_same_bits(arrays(got), arrays(want))


def test_write_error_is_raised_at_the_next_save(tmp_path):
    (tmp_path / checkpoints.FOLDER).write_text("a file where the folder should be")
    sentence = r"Checkpoint .*/1 cannot be written \(.*Error.*\); make room"
    with (
        pytest.raises(InputError, match=sentence),
        CheckpointManager(tmp_path, ABOUT, keep=1) as manager,
    ):
        manager.save(progress(1), history(1))
    manager = CheckpointManager(tmp_path, ABOUT, keep=1)
    manager.save(progress(1), history(1))
    with pytest.raises(InputError, match=sentence):
        manager.save(progress(2), history(2))


def test_files_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "values.json"
    atomic_io.write(path, "old")
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        atomic_io.write(path, "new and longer")
    assert [p.name for p in tmp_path.iterdir()] == ["values.json"]
    assert path.read_text() == "old"


def test_folders_are_written_atomically(tmp_path):
    def half(partial: pathlib.Path) -> None:
        (partial / "one").write_text("new")
        raise OSError(28, "full")

    atomic_io.write_folder(tmp_path / "made", lambda p: (p / "one").write_text("old"))
    with pytest.raises(OSError, match="full"):
        atomic_io.write_folder(tmp_path / "made", half)
    assert (tmp_path / "made" / "one").read_text() == "old"
    atomic_io.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


NAMES = [
    "par[0.01]", "lr=[1e-3,1e-2]", "a*b", "what?", "{x}", "50% of äö漢", "dots..", "a#b:c|d&e",
    r"back\slash", "'quoted\"", "$HOME", "line\nbreak", "latin\udce9", "]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "descriptors"), [*((name, True) for name in NAMES), (NAMES[0], False)], ids=ascii
)
def test_checkpoint_is_read_below_paths_with_any_characters(
    name, descriptors, tmp_path, monkeypatch
):
    """By the number of an open folder on Linux, elsewhere through a link."""
    if not descriptors:
        monkeypatch.setattr("fedjax_lora.runs.checkpoints.plain_path._DESCRIPTORS", "/not/there")
    for sibling in (name, "par0", "axb", "whatx"):  # what the name matches as a pattern
        save(tmp_path / sibling / "run", 1, seed=len(sibling))
    folder = tmp_path / name / "run"
    got = checkpoints.restore(checkpoints.latest(folder), progress(0, seed=1))
    problems.assert_same_bits(arrays(got), arrays(progress(1, seed=len(name))))
    assert names(folder) == ["1", "history.jsonl"]


def test_checkpoint_that_fails_verification_is_not_kept(tmp_path, monkeypatch):
    """It replaces no other checkpoint: what Orbax wrote without an error may still be damaged."""
    save(tmp_path, 1)
    save_arrays = ocp.StandardCheckpointer.save

    def wrong(self, folder, tree):
        save_arrays(
            self, folder, jax.tree.map(lambda x: x if np.ndim(x) < 2 else np.array(x) + 1, tree)
        )

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", wrong)
    complete = checkpoints.whole(tmp_path)
    with (
        pytest.raises(
            InputError, match=r"Checkpoint .*2 cannot be written \(OSError: the array state/"
        ),
        CheckpointManager(tmp_path, ABOUT, keep=2, checkpoints=complete) as manager,
    ):
        manager.save(progress(2), history(2))
    assert [checkpoint.round for checkpoint in checkpoints.whole(tmp_path)] == [1]


def test_unreadable_orbax_checkpoint_is_refused_in_one_sentence(folder):
    """One that was written below a path with brackets by an earlier version, for example."""
    newest = checkpoints.latest(folder)
    (newest.path / "arrays" / "manifest.ocdbt").unlink()
    with pytest.raises(InputError, match=r"Checkpoint .*/2 cannot be read \(.*\); move it away"):
        checkpoints.restore(newest, progress(0))


def test_size_of_a_checkpoint_does_not_grow_with_the_rounds(tmp_path):
    sizes = []
    with CheckpointManager(tmp_path, ABOUT, keep=1) as manager:
        for rounds in (1, 10, 1000):
            manager.save(progress(1)._replace(round=rounds), history(rounds))
            manager.wait()
            about = tmp_path / checkpoints.FOLDER / str(rounds) / "about.json"
            sizes.append(about.stat().st_size)
    assert sizes[2] < sizes[0] + 10
    assert checkpoints.latest(tmp_path).history == history(1000)


def test_only_new_rounds_are_written(tmp_path, monkeypatch):
    written, real = [], HistoryFile.extend

    def extend(self, new):
        written.append([record["round"] for record in new])
        return real(self, new)

    monkeypatch.setattr(HistoryFile, "extend", extend)
    for first in (1, 4):  # the second time it goes on
        complete = checkpoints.whole(tmp_path)
        with CheckpointManager(tmp_path, ABOUT, keep=1, checkpoints=complete) as manager:
            for rounds in (first, first + 2):
                manager.save(progress(rounds), history(rounds))
    assert written == [[1], [2, 3], [4], [5, 6]]
    lines = (tmp_path / checkpoints.FOLDER / FILE).read_text().splitlines()
    assert (
        [json.loads(line) for line in lines] == history(6) == checkpoints.latest(tmp_path).history
    )


def test_lines_after_the_newest_checkpoint_are_not_its_history(folder):
    """Of a process that ended between the lines and their checkpoint, in the middle of a line."""
    file = folder / checkpoints.FOLDER / FILE
    with file.open("a") as opened:
        opened.write('{"round": 3, "lo')
    complete = checkpoints.whole(folder)
    assert complete[-1].history == history(2)
    with CheckpointManager(folder, ABOUT, keep=2, checkpoints=complete) as manager:
        manager.save(progress(3), history(3))
    assert checkpoints.latest(folder).history == history(3)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_damaged_history_is_detected_and_that_of_the_metrics_serves(folder, damage, caplog):
    file = folder / checkpoints.FOLDER / FILE
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        bad = content[:-9] if damage == "cut" else content[:-9] + b"?" + content[-8:]
        file.write_bytes(bad)
    left = [] if damage == "gone" else [1]
    assert rounds_kept(folder) == left
    assert f"{folder / checkpoints.FOLDER / '2'} is not used: the history" in caplog.text
    (folder / "metrics.jsonl").write_bytes(content)
    assert checkpoints.latest(folder).history == history(2)


def test_checkpoint_of_version_0_2_holds_its_history(folder):
    newest = folder / checkpoints.FOLDER / "2"
    about = json.loads((newest / "about.json").read_text())
    (newest / "about.json").write_text(json.dumps(about | {"history": history(2)}))
    write_checksums(newest)
    (folder / checkpoints.FOLDER / FILE).unlink()
    complete = checkpoints.whole(folder)
    assert [c.history for c in complete] == [history(2)]
    with CheckpointManager(folder, ABOUT, keep=2, checkpoints=complete) as manager:
        manager.save(progress(3), history(3))
    assert [c.history for c in checkpoints.whole(folder)] == [history(2), history(3)]

"""The command ``fedjax-lora run --resume``, in this process."""

import json
import shutil

import pytest

from fedjax_lora.cli import main
from fedjax_lora.runs import checkpoints
from tests._helpers.command_line import SMALL, one_sentence


def test_finished_run_is_reported_and_can_be_extended(finished, tmp_path, capsys):
    out = shutil.copytree(finished.out, tmp_path / "a run")
    capsys.readouterr()
    assert main.main(["run", "--resume", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"{out} is finished; give a larger --rounds to extend it" in told
    assert "after 1 rounds" in told
    assert main.main(["run", f"--resume={out}", "--rounds=2"]) == 0
    told = capsys.readouterr().out
    assert "resumed after round 1" in told and "after 2 rounds" in told
    assert json.loads((out / "config.json").read_text())["federation"]["rounds"] == 2
    assert checkpoints.latest(out).round == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method=hlora"], "federation.method was 'fed_plora' and cannot become 'hlora'."),
        (["--out=elsewhere"], "--resume takes the folder and its config; leave out --out."),
        (["--overwrite"], "--resume takes the folder and its config; leave out --overwrite."),
        (["--config=a.json"], "--resume takes the folder and its config; leave out --config."),
    ],
)
def test_options_incompatible_with_resume_are_refused(words, sentence, finished, capsys):
    before = sorted(path.stat().st_mtime_ns for path in finished.out.rglob("*"))
    assert one_sentence(["run", "--resume", str(finished.out), *words], capsys, sentence)
    assert sorted(path.stat().st_mtime_ns for path in finished.out.rglob("*")) == before


@pytest.mark.parametrize("name", ["nothing", "file", "folder"])
def test_folder_without_a_run_cannot_be_resumed(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    sentence = f"Folder {tmp_path / name} holds no run to resume: it has no config.json."
    assert one_sentence(["run", f"--resume={tmp_path / name}"], capsys, sentence)
    assert not (tmp_path / "nothing").exists()


def test_folder_with_the_same_run_suggests_resume(finished, capsys):
    words = ["run", *SMALL, f"--out={finished.out}"]
    assert one_sentence(words, capsys, "holds this run already; resume it with --resume")

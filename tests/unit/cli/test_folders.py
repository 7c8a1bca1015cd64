"""Command-line arguments are checked before JAX is imported, and nothing is downloaded unasked."""

import json
import os
import subprocess
import sys

import pytest

from fedjax_lora import InputError
from fedjax_lora.cli import main
from fedjax_lora.cli.folders import check_base
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import ModelConfig, RunConfig

SCRIPT = """
import json, sys
from fedjax_lora.cli import main
print(json.dumps([main.main(words) for words in json.loads(sys.argv[1])]))
print("jax" in sys.modules)
"""


def make_run(folder, model="minilm", *, finished=True):
    (folder / "adapter" if finished else folder).mkdir(parents=True)
    values = configs.to_dict(RunConfig(model=ModelConfig(model=model)))
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_invalid_options_are_refused_before_jax_is_imported(tmp_path):
    run, new = make_run(tmp_path / "run"), tmp_path / "new"
    unfinished = make_run(tmp_path / "unfinished", finished=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    wrong = {
        "Folder none does not exist": ["evaluate", "none"],
        "holds no model": ["evaluate", str(tmp_path / "empty")],
        "is not finished": ["evaluate", str(unfinished)],
        "holds no run": ["evaluate", str(tmp_path / "empty"), "--clients"],
        "Unknown task 'nope'": ["evaluate", str(run), "--task=nope"],
        "Unknown model 'bert-bas'": ["evaluate", str(run), "--model=bert-bas"],
        "give the name of a file": ["evaluate", str(run), f"--out={tmp_path}"],
        "Folder nope does not exist": ["predict", "nope"],
        "x.txt cannot be read": ["predict", str(run), f"--input={tmp_path / 'x.txt'}"],
        "Unknown model 'berd'": ["predict", str(run), "--model=berd"],
        "empty holds no run": ["export", str(tmp_path / "empty"), f"--out={new}"],
        "is a file or holds files": ["export", str(run), f"--out={tmp_path / 'full'}"],
        "'big' is not a size": ["export", str(run), f"--out={new}", "--shard-size=big"],
        "Unknown model 'bart'": ["export", str(run), f"--out={new}", "--model=bart"],
        "unfinished/adapter does not exist": ["inspect", str(unfinished / "adapter")],
        "and no comparison": ["compare", f"--out={tmp_path / 'full'}"],
        "Unknown method 'nope'": ["compare", "--methods", "nope"],
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([*wrong.values()])],
        capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "500"},
    )  # fmt: skip
    statuses, jax_imported = done.stdout.splitlines()
    assert json.loads(statuses) == [2] * len(wrong) and jax_imported == "False"
    for sentence, line in zip(wrong, done.stderr.splitlines(), strict=True):
        assert line.startswith("fedjax-lora: ") and sentence in line


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "run"])
def test_base_named_only_by_the_folder_is_not_downloaded(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedjax_lora.models.huggingface.registry.download", lambda *_, **__: 1 / 0)
    folder = make_run(tmp_path / "run", "some-one/their-model")
    words = {
        "evaluate": ["evaluate", str(folder)],
        "predict": ["predict", str(folder), f"--input={folder / 'config.json'}"],
        "export": ["export", str(folder), f"--out={tmp_path / 'new'}", "--client=0"],
        "run": ["run", f"--resume={folder}"],
    }[command]
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert "says that its base is 'some-one/their-model', which is not on this machine" in error
    assert "give it with --model" in error
    if command == "run":  # with --model it is asked for
        with pytest.raises(ZeroDivisionError):
            main.main([*words, "--model=some-one/their-model"])


def test_registered_local_and_cached_models_need_no_confirmation(tmp_path, monkeypatch):
    known = ("minilm", "google-bert/bert-base-uncased", "distilbert-base-uncased")
    for name in (*known, str(tmp_path), "not/a/hub-id"):
        check_base(tmp_path, name)
    for name in ("some-one/their-model", "bert-base-cased"):
        with pytest.raises(InputError, match="not on this machine"):
            check_base(tmp_path, name)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "a/file")
    check_base(tmp_path, "some-one/their-model")

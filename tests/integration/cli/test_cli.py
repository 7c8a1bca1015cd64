"""The command line with valid and invalid input."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_lora import models
from fedjax_lora.cli import main
from tests._helpers.command_line import SMALL, one_sentence


def test_run_prints_a_table_and_writes_a_folder(finished):
    for word in ("round", "accuracy", "loss", "seconds", "MB up", "MB down", str(finished.out)):
        assert word in finished.printed
    assert json.loads((finished.out / "config.json").read_text())["federation"]["cohort"] == 2


def test_saved_config_runs_again_with_overrides(finished, tmp_path):
    first, second = finished.out, tmp_path / "second"
    again = ["run", f"--config={first / 'config.json'}", "--learning-rate=0.02", f"--out={second}"]
    assert main.main(again) == 0
    one, other = (json.loads((p / "config.json").read_text()) for p in (first, second))
    assert other["local"].pop("learning_rate") == 0.02 != one["local"].pop("learning_rate")
    assert one == other


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("methods", ["fed_plora", "replication", "2602.16936"]),
        ("models", ["minilm", "roberta-base"]),
        ("tasks", ["docstrings", "ag_news", "mrpc"]),
    ],
)
def test_list_commands_print_every_name(command, words, capsys):
    assert main.main([command]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_help_and_version_need_no_jax():
    code = (
        "import sys; from fedjax_lora.cli.main import main; main(['--help']); main(['--version'])"
    )
    code += "; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: fedjax-lora" in done.stdout


def test_python_dash_m_returns_the_exit_status(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_lora", "run", "--method=nope", f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("fedjax-lora: Unknown method 'nope'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["methods"], ["run", "--help"]])
def test_closed_pipe_ends_the_command_without_an_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "fedjax_lora", *words],
            stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def csv(folder: pathlib.Path, text: str, name: str = "train.csv") -> str:
    (folder / name).write_text(text)
    return "--task=file(train='train.csv', test='train.csv', text='text', label='label')"


GOOD = "text,label\n" + "".join(f"some words {k},{k % 2}\n" for k in range(20))

BAD_OPTIONS = [
    (["--method=fedplora"], "Unknown method 'fedplora'; did you mean 'fed_plora'?"),
    (["--method=fed_plora(select='random')"], "did you mean 'selection'"),
    (["--method=fed_plora(selection=random)"], "must be literals"),
    (["--method=fed_plora(selection='best')"], "selection"),
    (["--task=agnews"], "Unknown task 'agnews'"),
    (["--model=no/such-model"], "no/such-model"),
    (["--model=/no/such/folder"], "/no/such/folder"),
    (["--targets=nothing-like-it"], "match no layer"),
    (["--targets=(("], "regular expression"),
    (["--ranks=fixed(rank=0)"], "whole numbers from 1"),
    (["--ranks=fixed(rank=500)"], "LoRA rank 500 exceeds"),
    (["--ranks=tiers(ranks=[2,4], shares=[1.0])"], "as many non-negative shares"),
    (["--partition=dirichlet(alpha=0)"], "alpha"),
    (["--partition=natural(by=1)"], "natural"),
    (["--optimizer=adamv"], "Unknown optimizer 'adamv'"),
    (["--optimizer=adamw(weight=1)"], "weight"),
    (["--schedule=linear(stop=1)"], "stop"),
    (["--cohort=5"], "a cohort of 5 cannot be drawn from 4 clients"),
    (["--clients=100", "--cohort=2"], "100"),
    (["--rounds=0"], "rounds must be at least 1"),
    (["--train-examples=1000000"], "1000000"),
    (["--layers=7"], "layers is 7 but must be between 1 and the 6"),
    (["--lora-layers", "0", "3"], "Layers [3] do not exist"),
    (["--data-dir=/no/such", "--task=ag_news"], "/no/such"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD_OPTIONS, ids=lambda x: str(x)[:40])
def test_invalid_options_are_refused_in_one_sentence(words, sentence, tmp_path, capsys):
    given = {word.split("=")[0] for word in words}
    rest = [word for word in SMALL if word.split("=")[0] not in given]
    assert one_sentence(["run", *rest, *words, f"--out={tmp_path / 'out'}"], capsys, sentence)
    assert not (tmp_path / "out").exists(), "bad input must not leave a folder behind"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out={run}"], "holds this run already; resume it with --resume, choose another"),
        (["--seed=7", "--out={run}"], "holds a different run (seed)"),
        (["--out={run}/figures"], "holds other files"),
        (["--out={run}/config.json"], "is a file or a link to nothing"),
        (["--resume={run}/figures"], "config.json"),
    ],
)
def test_unusable_output_folder_is_refused_before_loading(
    words, sentence, finished, capsys, monkeypatch
):
    """Before the data and the model are loaded."""
    monkeypatch.setattr("fedjax_lora.runs.loading.load_assets", None)
    words = [word.replace("{run}", str(finished.out)) for word in words]
    assert one_sentence(["run", *SMALL, *words], capsys, sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("text,label", "words,label"), "text"),
        (GOOD.replace("some words 3,1", "some words 3,1,extra"), "train.csv"),
        (GOOD.replace("some words 3,1", "some words 3"), "train.csv"),
        ("", "train.csv"),
    ],
    ids=["missing column", "extra field", "missing field", "empty file"],
)
def test_invalid_files_are_refused_in_one_sentence(text, sentence, tmp_path, capsys):
    task = csv(tmp_path, text)
    words = [w for w in SMALL if "examples" not in w]
    assert one_sentence(["run", *words, task, f"--data-dir={tmp_path}"], capsys, sentence)


def test_valid_file_runs(tmp_path):
    task = csv(tmp_path, GOOD)
    words = [w for w in SMALL if "examples" not in w]
    out = f"--out={tmp_path / 'out'}"
    assert main.main(["run", *words, task, f"--data-dir={tmp_path}", out]) == 0


def test_missing_model_file_is_named(tmp_path, capsys):
    csv(tmp_path, GOOD)
    task = "--task=file(train='absent.csv', text='text', label='label')"
    assert one_sentence(["run", task, f"--data-dir={tmp_path}"], capsys, "absent.csv")


@pytest.fixture
def checkpoint(tmp_path) -> pathlib.Path:
    """A copy of the encoder's folder that a test may damage."""
    source = models.resolve("minilm").folder
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    return folder


def test_missing_tensor_is_named(checkpoint, capsys):
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("layer.0.attention.self.query.weight"))
    tensors.pop(name)
    weights.unlink()
    save_file(tensors, weights)
    assert one_sentence(["run", *SMALL, f"--model={checkpoint}"], capsys, name)


def test_tensor_of_another_shape_is_named(checkpoint, capsys):
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("layer.0.attention.self.query.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])
    weights.unlink()
    save_file(tensors, weights)
    assert one_sentence(["run", *SMALL, f"--model={checkpoint}"], capsys, name)


def test_unsupported_architecture_is_named(checkpoint, capsys):
    config = checkpoint / "config.json"
    values = json.loads(config.read_text()) | {"model_type": "bloom"}
    config.unlink()
    config.write_text(json.dumps(values))
    assert one_sentence(["run", *SMALL, f"--model={checkpoint}"], capsys, "bloom")


def test_invalid_config_file_is_refused_with_the_reason(tmp_path, capsys):
    path = tmp_path / "config.json"
    for text, sentence in [
        ("{", "not JSON"),
        ("[]", "must map names"),
        ('{"federation": {"cohrot": 2}}', "did you mean 'cohort'"),
        ('{"federation": {"cohort": "two"}}', "federation.cohort cannot be 'two'"),
    ]:
        path.write_text(text)
        assert one_sentence(["run", f"--config={path}"], capsys, sentence)
    assert one_sentence(["run", f"--config={tmp_path / 'none.json'}"], capsys, "none.json")


RAN_OUT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore\nlines"


@pytest.mark.parametrize(
    ("command", "told", "not_told"),
    [
        ("run", ["--clients-per-step", "--batch", "--remat", "--explain"], []),
        ("compare", ["--clients-per-step", "--batch", "--remat", "--explain"], []),
        ("evaluate", ["--batch"], ["--clients-per-step", "--remat", "--explain"]),
        ("predict", ["--batch"], ["--clients-per-step", "--remat", "--explain"]),
        ("export", ["use one with more"], ["--"]),
    ],
)
@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (jax.errors.JaxRuntimeError(RAN_OUT), "The device's memory is too small (RESOURCE_EXHAUS"),
        (MemoryError("Unable to allocate 9 GiB"), "This machine's memory is too small (Unable to"),
        (MemoryError(), "This machine's memory is too small (no allocation is named)"),
    ],
    ids=["device", "array", "python"],
)
def test_out_of_memory_is_reported_in_one_sentence(
    error, begins, command, told, not_told, capsys, monkeypatch
):
    for option in (word for word in told if word.startswith("--")):
        with pytest.raises(SystemExit):
            shown = "run" if option == "--explain" else command
            main.main([shown, "--help-all" if shown == "run" else "--help"])
        assert option in capsys.readouterr().out, "what is advised must be there"

    def work(args):
        raise error

    monkeypatch.setitem(main.COMMANDS, command, work)
    assert main.main([command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedjax-lora: {begins}")
    assert all(word in line for word in told) and not any(word in line for word in not_told)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL"), ValueError(RAN_OUT)])
def test_unexpected_error_keeps_its_traceback(error, monkeypatch):
    def work(args):
        raise error

    monkeypatch.setitem(main.COMMANDS, "run", work)
    with pytest.raises(type(error)):
        main.main(["run"])

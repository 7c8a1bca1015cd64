"""Untrusted files run no code, write outside no folder and are bounded; secrets are not exposed."""

import ast
import contextlib
import io
import os
import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import fedjax_lora
from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import Case, write_case
from fedjax_lora import InputError, data, models
from fedjax_lora.cli import main, run
from fedjax_lora.models.huggingface import download, tensors
from fedjax_lora.runs.config import DataConfig, ModelConfig, RunConfig
from fedjax_lora.runs.sweep.runner import file_name

PACKAGE = pathlib.Path(fedjax_lora.__file__).parent
TOKEN = "hf_" + "Ab3" * 12
UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
ONLY_WITH = {  # calls that are safe with one keyword only
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "_class_of(folder).from_pretrained": ("trust_remote_code", False),
}
NEVER = {"eval", "exec", "compile", "os.system", "os.popen", "__import__"}


def offences(source: str) -> list[str]:
    """Calls and imports that could run what comes from outside."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        trusts = isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
        if trusts and ast.unparse(node.value) != "False":
            found.append("trusts remote code")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in NEVER:
            found.append(f"calls {called}")
        if called.endswith(".from_pretrained") and called not in ONLY_WITH:
            found.append(f"calls {called}")
        for safe, (keyword, value) in ONLY_WITH.items():
            if called.replace("numpy.", "np.") == safe:
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if given.get(keyword) != repr(value):
                    found.append(f"calls {called} without {keyword}={value}")
    return found


def test_package_executes_no_external_code():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    assert {f.name: offences(f.read_text("utf-8")) for f in files if offences(f.read_text())} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "numpy.load(file)",
        "AutoTokenizer.from_pretrained(folder)",
        "_class_of(folder).from_pretrained(folder)",
        "AutoModel.from_pretrained(folder)",
        "load(folder, trust_remote_code=True)",
        "load(folder, trust_remote_code=given)",
        "eval(text)",
        "os.system(text)",
    ],
)
def test_execution_of_external_code_is_detected(source):
    assert len(offences(source)) == 1


# --------------------------------------------------------------------------------------------- code


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def run_words(tmp_path):
    return write_case(Case("well-formed", ""), tmp_path / "run")


def test_pickled_weights_do_not_run(tmp_path):
    import torch

    (tmp_path / "model").mkdir()
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="contains more than plain tensors"):
        tensors.open_tensors(tmp_path / "model")
    assert not (tmp_path / "sprung").exists()


def test_pickled_cache_does_not_run(tmp_path):
    """It is not read, and replaced."""
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_bytes(valid.files()["model/tokenizer.json"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="[PAD]"
    )
    split = data.Split(["some words"], None, np.zeros(1, np.int32), None)
    cache = tmp_path / "cache"
    want = data.encode(split, tokenizer, max_length=8, cache_dir=cache)
    (file,) = cache.glob("*.npz")
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(file, ids=trap, types=trap, length=trap)
    got = data.encode(split, tokenizer, max_length=8, cache_dir=cache)
    assert not (tmp_path / "sprung").exists()
    np.testing.assert_array_equal(got.ids, want.ids)
    np.load(file, allow_pickle=False)["ids"]


@pytest.mark.parametrize("name", ["Remote", "PreTrainedTokenizerFast"])
def test_remote_tokenizer_code_does_not_run(name, tmp_path, run_words, monkeypatch, capsys):
    """And without a question whether it should."""
    folder = tmp_path / "run" / "model"
    options = valid.tokenizer_config() | {
        "tokenizer_class": name,
        "auto_map": {"AutoTokenizer": ["own.Remote", "own.Remote"]},
    }
    (folder / "tokenizer_config.json").write_bytes(valid.as_json(options))
    trap = f"import os; os.mkdir({str(tmp_path / 'sprung')!r})\nclass Remote: pass\n"
    (folder / "own.py").write_text(trap)
    asked = io.StringIO("y\n" * 9)
    monkeypatch.setattr("sys.stdin", asked)
    monkeypatch.setattr("fedjax_lora.runs.folder.RunFolder.start", lambda *given: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):  # read without its code
        assert main.main([*run_words, f"--out={tmp_path / 'out'}"]) == 2
    assert asked.tell() == 0
    assert not (tmp_path / "sprung").exists()


# -------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["../b.safetensors", "{}/b.safetensors", "c/../../b.safetensors"])
def test_shard_index_cannot_point_outside_its_folder(name, tmp_path):
    """The file that it names is there, and would do."""
    folder = tmp_path / "model"
    (folder / "c").mkdir(parents=True)
    save_file({"a": np.zeros(2)}, tmp_path / "b.safetensors")
    index = {"weight_map": {"a": name.format(tmp_path)}}
    (folder / "model.safetensors.index.json").write_bytes(valid.as_json(index))
    with pytest.raises(InputError, match="is not the plain name"):
        tensors.open_tensors(folder)


def test_only_plain_names_are_downloaded():
    bad = ["../config.json", "/model.safetensors", "x/model.safetensors", "model.py", "run.sh"]
    bad += ["model-1-of-2.safetensors/../../x", "tokenizer.json\n", "modeling_bert.py"]
    assert download._select_files([*bad, "config.json"]) == ["config.json"]


@pytest.mark.parametrize(
    "name", ["../up/model", "a/../b", "a/b/c", "/a/b", "a//b", "a/b?x", "a\\b", "a/b@c", "./a/b"]
)
def test_invalid_hub_ids_are_not_requested(name, monkeypatch):
    monkeypatch.setattr("fedjax_lora.models.huggingface.registry.download", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError):
        models.resolve(name)


def test_result_file_names_hold_no_path():
    """Task and method come from configs that others may have written."""
    for text in ("../../x", "/etc/x", "a\\..\\b", "file(train='../x.csv')"):
        config = RunConfig(data=DataConfig(task=text))
        out = run.default_out(config)
        assert out.parts[0] == "runs" and len(out.parts) == 2 and ".." not in out.parts[1]
        assert re.fullmatch(r"[\w.-]+", file_name(config))


# ------------------------------------------------------------------------------------------ secrets


@pytest.mark.slow
def test_outputs_of_a_run_hold_no_hub_token(tmp_path, run_words, monkeypatch, capfd):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    out = tmp_path / "out"
    assert main.main([*run_words, f"--out={out}"]) == 0
    written = [file for file in out.rglob("*") if file.is_file()]
    assert {"config.json", "summary.json", "metrics.jsonl"} <= {file.name for file in written}
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "secret", [TOKEN, f"https://someone:{TOKEN}@huggingface.co/a/b", "https://me:word@host.org/b"]
)
@pytest.mark.parametrize("option", ["--model", "--data-dir", "--task"])
def test_token_among_the_options_is_refused_and_not_printed(option, secret, tmp_path, capfd):
    value = f"file(train='{secret}')" if option == "--task" else secret
    assert main.main(["run", f"{option}={value}", f"--out={tmp_path / 'out'}"]) == 2
    printed = "".join(capfd.readouterr())
    assert "holds a token or a password" in printed
    assert TOKEN not in printed and "word@" not in printed
    assert not (tmp_path / "out").exists()


def test_error_messages_hold_no_secrets():
    for text in (f"no {TOKEN} here", f"see https://me:{TOKEN}@hub/x", "at ftp://me:w0rd@host/x"):
        assert TOKEN not in str(InputError(text)) and "w0rd" not in str(InputError(text))
        assert "***" in str(InputError(text))
    plain = "https://host/hf_datasets/hf_transfer2 and a@b"
    assert str(InputError(plain)) == plain
    assert ModelConfig(model="org/hf_transfer_model") and RunConfig(
        data=DataConfig(data_dir="/data/hf_datasets_2024")
    )


def test_error_messages_are_bounded_in_length():
    text = str(InputError(f"begin {'x' * 10**6} end"))
    assert len(text) < 3000 and text.startswith("begin") and text.endswith("end")

"""Commands on the outputs of a run, with valid and invalid input."""

import dataclasses
import errno
import io
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from fedjax_lora import interop
from fedjax_lora.cli import main, push
from fedjax_lora.cli.evaluate import EvaluateOptions, evaluate
from fedjax_lora.cli.predict import read_texts
from fedjax_lora.cli.run_or_model import open_folder
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import load_adapter, probabilities
from fedjax_lora.runs import checkpoints, outputs
from fedjax_lora.runs.config import ExecutionConfig
from fedjax_lora.runs.resume import read_config, reopen
from tests._helpers.fake_hub import fake_hub
from tests._helpers.small_options import small

SMALL = small()
TEXTS = "Opens a file\nSends a \t message\n"
SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"


def run(folder: pathlib.Path, *words: str) -> pathlib.Path:
    assert main.main(["run", *SMALL, *words, f"--out={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    """Ranks 1 and 4, and a token in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        folder = tmp_path_factory.mktemp("runs") / "plain"
        return run(folder, "--method=hlora", "--ranks=tiers(ranks=[1,4])")


@pytest.fixture(scope="module")
def personal(tmp_path_factory) -> pathlib.Path:
    """Each client has its own head and its own second factor."""
    words = ["--method=fedsa_lora", "--ranks=fixed(rank=2)", "--heads=local", "--rounds=2"]
    return run(tmp_path_factory.mktemp("runs") / "personal", *words)


@pytest.fixture(scope="module")
def merged(plain, tmp_path_factory) -> pathlib.Path:
    """The merged checkpoint of `plain`."""
    out = tmp_path_factory.mktemp("exports") / "merged"
    assert main.main(["export", str(plain), "--merged", f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def numbers_of_clients(personal) -> list[dict]:
    """The evaluation of every client of `personal`."""
    return evaluate(EvaluateOptions(where=personal, clients=True))["clients"]


def summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_evaluate_reproduces_the_recorded_scores(plain, capsys):
    found = evaluate(EvaluateOptions(where=plain, ranks=(1, 4)))
    assert found["global"]["accuracy"] == summary(plain)["accuracy"]
    assert found["global"]["loss"] == pytest.approx(summary(plain)["loss"], abs=1e-6)
    cut, whole = found["ranks"]
    assert whole["loss"] == found["global"]["loss"] != cut["loss"]
    assert main.main(["evaluate", str(plain / "adapter")]) == 0
    assert "global model" in capsys.readouterr().out


def test_evaluate_prints_the_notes_on_labels(plain, tmp_path, caplog):
    names = interop.load_model(plain / "adapter").metadata.classes
    lines = [f"some words\t{name}" for name in (*names, *names[:-1])]
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *lines]))
    task = "file(train='a.tsv', test='a.tsv')"
    found = evaluate(EvaluateOptions(where=plain, task=task, data_dir=str(tmp_path)))
    assert found["examples"] == 2 * len(names) - 1
    assert f"only one training example of the class {names[-1]!r}" in caplog.text


def test_each_client_is_evaluated_with_its_own_model(plain, numbers_of_clients, tmp_path):
    out = tmp_path / "numbers.json"
    assert main.main(["evaluate", str(plain), "--clients", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert [row["rank"] for row in found["ranks"]] == [1, 4]
    # HLoRA's components are singular values: a client of full rank has the global model.
    by_rank = {row["rank"]: row["loss"] for row in found["clients"]}
    assert by_rank[4] == pytest.approx(found["global"]["loss"], abs=1e-5)
    assert found["spread"]["loss"]["highest"] == max(row["loss"] for row in found["clients"])

    losses = {row["loss"] for row in numbers_of_clients}
    assert len(losses) == 4, "four clients, four heads"


def test_client_model_uses_its_stored_state(personal):
    run, progress, _ = reopen(personal, read_config(personal))
    store = progress.state.clients
    trained = np.asarray(store.method.trained)
    assert trained.any()
    for client in range(4):
        fitted = outputs.client_model(run, progress, client)
        jax.tree.map(
            np.testing.assert_array_equal,
            fitted.head,
            jax.tree.map(lambda x, k=client: x[k], store.head),
        )
        for path, pair in fitted.adapter.items():
            np.testing.assert_array_equal(pair.a, progress.state.server.adapter[path].a)
            own = store.method.b[path][client]
            np.testing.assert_array_equal(pair.b, own)
            assert bool(np.any(own)) == bool(trained[client])


def test_sharded_run_opens_on_one_device(plain):
    larger = ExecutionConfig(mode="sharded", devices=64, mesh=(32, 2))
    config = dataclasses.replace(read_config(plain), execution=larger)
    run, progress, _ = reopen(plain, config)
    held = jax.tree.leaves((run.inputs.base, run.inputs.train, progress.state))
    assert {device for x in held if isinstance(x, jax.Array) for device in x.devices()} == {
        jax.devices()[0]
    }


def test_client_adapter_is_exported_at_its_own_rank(plain, personal, numbers_of_clients, tmp_path):
    run, progress, _ = reopen(plain, read_config(plain))
    for client, rank in enumerate(progress.rank.tolist()):
        out = tmp_path / str(client)
        assert main.main(["export", str(plain), f"--client={client}", f"--out={out}"]) == 0
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["r"] == rank
        assert f"{client}, of rank {rank}" in (out / "README.md").read_text()
        back = load_adapter(out, run.inputs.assets.model)
        ours = outputs.client_model(run, progress, client)
        for path, pair in back.adapter.items():
            np.testing.assert_array_equal(pair.b, ours.adapter[path].b[..., :rank, :])
    out = tmp_path / "merged"
    assert main.main(["export", str(personal), "--client=2", "--merged", f"--out={out}"]) == 0
    rows = numbers_of_clients
    merged = evaluate(EvaluateOptions(where=out, test_examples=30))
    assert merged["examples"] == 30
    assert merged["global"]["loss"] == pytest.approx(rows[2]["loss"], abs=1e-5)


def test_best_scoring_model_is_exported(personal, tmp_path, monkeypatch):
    """The first checkpoint counts as the best, so that it is not the last."""
    monkeypatch.setattr(checkpoints, "best", lambda found: found[0])
    assert main.main(["export", str(personal), "--best", f"--out={tmp_path / 'best'}"]) == 0
    run, progress, _ = reopen(personal, read_config(personal), best=True)
    assert progress.round == 1 < reopen(personal, read_config(personal)).progress.round
    for path, pair in load_adapter(tmp_path / "best", run.inputs.assets.model).adapter.items():
        np.testing.assert_array_equal(pair.a, progress.state.server.adapter[path].a)


def test_best_checkpoint_is_evaluated_and_predicts(personal, tmp_path, monkeypatch):
    """As its export does, and not as the last one does."""
    monkeypatch.setattr(checkpoints, "best", lambda found: found[0])
    out = tmp_path / "best"
    assert main.main(["export", str(personal), "--best", f"--out={out}"]) == 0
    best = evaluate(EvaluateOptions(where=personal, best=True))["global"]
    exported = evaluate(EvaluateOptions(where=out, test_examples=30))["global"]
    last = evaluate(EvaluateOptions(where=personal))["global"]
    assert best["loss"] == pytest.approx(exported["loss"], abs=1e-6)
    assert abs(best["loss"] - last["loss"]) > 1e-4
    (tmp_path / "texts").write_text(TEXTS)
    tables = [tmp_path / name for name in ("run", "export")]
    for where, table, words in zip((personal, out), tables, (["--best"], []), strict=True):
        given = [f"--input={tmp_path / 'texts'}", f"--out={table}"]
        assert main.main(["predict", str(where), *given, *words]) == 0
    assert tables[0].read_text() == tables[1].read_text() != ""


def test_large_change_is_exported_merged(plain, tmp_path):
    """A base that was changed everywhere: the adapter for it would be larger than the change."""
    folder = shutil.copytree(plain, tmp_path / "run")
    opened = open_folder(folder)
    base, noise = opened.base_params, np.random.default_rng(0)
    kernels = {
        target.path: (k := trees.flat(base)[f"{target.path}/kernel"])
        + jnp.asarray(noise.normal(size=k.shape) * 0.5, jnp.float32)
        for target in opened.targets
    }
    changed = dataclasses.replace(opened, kernels=kernels)
    outputs.write_model(folder, changed)
    assert not (folder / "adapter").exists()
    want = probabilities(changed, TEXTS.splitlines())
    assert np.abs(want - probabilities(opened, TEXTS.splitlines())).max() > 1e-3
    np.testing.assert_allclose(
        probabilities(open_folder(folder), TEXTS.splitlines()), want, atol=1e-5
    )
    out = tmp_path / "adapter"
    assert main.main(["export", str(folder), f"--out={out}"]) == 0, "that of the checkpoint"
    found = evaluate(EvaluateOptions(where=out, test_examples=30))
    assert found["global"]["loss"] == pytest.approx(summary(plain)["loss"], abs=1e-5)


def test_run_starts_from_the_adapter_of_another(plain, tmp_path):
    before = summary(plain)["loss"]
    words = ["--ranks=fixed(rank=4)", f"--adapter={plain / 'adapter'}", "--learning-rate=1e-9"]
    folder = run(tmp_path / "run", "--method=flora", *words)
    assert summary(folder)["loss"] == pytest.approx(before, abs=1e-4)


def test_predictions_equal_those_of_the_model(plain, tmp_path, capsys, monkeypatch):
    want = probabilities(open_folder(plain), TEXTS.splitlines())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXTS.encode())))
    assert main.main(["predict", str(plain)]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header[:2] == ["label", "probability"]
    for row, p in zip(rows, want, strict=True):
        assert row[0] == header[2 + p.argmax()]
        np.testing.assert_allclose([float(x) for x in row[2:]], p, atol=1e-6)
    (tmp_path / "a.csv").write_text("words\nOpens a file\nSends a \t message\n")
    out = tmp_path / "out.jsonl"
    words = [f"--input={tmp_path / 'a.csv'}", "--text=words", "--format=jsonl", f"--out={out}"]
    assert main.main(["predict", str(plain / "adapter"), *words]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["text"] for r in records] == TEXTS.splitlines()
    np.testing.assert_allclose([[*r["probabilities"].values()] for r in records], want, atol=1e-6)


@pytest.mark.parametrize("given", [b"caf\xe9\n", b"half a character: \xed\xa0\x80\n"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_undecodable_standard_input_is_refused(given, errors, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", stream)
    with pytest.raises(InputError, match=r"standard input is not UTF-8 text .*; convert it"):
        read_texts(None, ["text"])


def test_run_is_inspected_and_its_figure_redrawn(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "run")
    (folder / "figures" / "accuracy.png").unlink()
    assert main.main(["inspect", str(folder), "--redraw"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "federation.method = hlora", "rounds: 1 of 1, finished", "checkpoints/1:", "the best",
        "2 matrices 384 x 384 at rank 4", "accuracy = ",
    ):  # fmt: skip
        assert words in printed
    assert (folder / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(folder / "adapter")
    (folder / "summary.json").unlink()
    assert main.main(["inspect", str(folder)]) == 0
    assert "not finished" in capsys.readouterr().out


def test_exports_hold_no_token_and_no_local_path(plain, merged):
    home = str(pathlib.Path.home())
    for folder in (plain, merged):
        for file in (path for path in folder.rglob("*") if path.is_file()):
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            if file.suffix in (".json", ".md"):
                assert home.encode() not in content and b"site-packages" not in content, file


WRONG = [
    (["evaluate", "{none}"], "does not exist"),
    (["evaluate", "{empty}"], "holds no model"),
    (["evaluate", "{run}", "--task=ag_news"], "does not go with the model: it has 4 classes"),
    (["evaluate", "{run}", "--task=nope"], "Unknown task 'nope'"),
    (["evaluate", "{run}", "--ranks", "0"], "ranks must be at least 1"),
    (["evaluate", "{run}/adapter", "--clients"], "holds no run"),
    (["evaluate", "{run}/adapter", "--best"], "holds no run"),
    (["predict", "{run}/adapter", "--best"], "holds no run"),
    (["evaluate", "{run}/adapter", "--model=bert-base"], "bert"),
    (["evaluate", "{run}", "--test-examples=0"], "test_examples is 0, must be at least 1"),
    (["evaluate", "{run}", "--pooling=mean"], "only for adapters that fedjax-lora has not written"),
    (["predict", "{run}/adapter", "--pooling=mean"], "adapters that fedjax-lora has not written"),
    (["predict", "{run}", "--pair=b"], "is a classifier: --pair is only for models of pairs"),
    (["predict", "{run}", "--input={none}"], "cannot be read"),
    (["predict", "{run}", "--input={run}/metrics.jsonl"], "no column 'text'"),
    (["predict", "{run}", "--batch=0"], "batch must be at least 1"),
    (["predict", "{empty}"], "holds no model"),
    (["export", "{run}", "--out={run}"], "holds files"),
    (["export", "{run}", "--out={new}", "--client=4"], "the clients are 0..3"),
    (["export", "{run}", "--out={new}", "--client=-1"], "the clients are 0..3"),
    (["export", "{run}", "--out={new}", "--merged", "--shard-size=big"], "500MB"),
    (["export", "{run}/adapter", "--out={new}"], "holds no run"),
    (["export", "{run}"], "a new folder --out, or --push USER/NAME"),
    (["export", "{run}", "--out={new}", "--private"], "about the repository of --push"),
    (["export", "{run}", "--out={new}", "--push=models"], "not a repository USER/NAME"),
    (["export", "{run}", "--out={new}", "--push=a/b/c"], "not a repository USER/NAME"),
    (["export", "{run}", "--push=someone/model"], "HF_HUB_OFFLINE forbids it"),
    (["inspect", "{empty}"], "holds no run"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda x: str(x)[:50])
def test_invalid_input_is_refused_and_writes_nothing(
    words, sentence, plain, shared, tmp_path, capsys
):
    if "--task=ag_news" in words:
        if not shared.is_dir():
            pytest.skip("needs the real data in ../shared")
        words = [*words, f"--data-dir={shared / 'data'}"]
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("none", "empty", "new")} | {"run": plain}
    assert main.main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fedjax-lora: ") and sentence in error, error
    assert not (tmp_path / "new").exists()


def test_pushed_adapter_is_the_exported_one_with_its_card(plain, tmp_path, capsys, monkeypatch):
    with fake_hub(monkeypatch, token=SECRET) as hub:
        words = ["export", str(plain), f"--out={tmp_path / 'out'}", "--push=someone/federated"]
        assert main.main([*words, "--private"]) == 0
    assert "/someone/federated" in capsys.readouterr().out.replace("\n", "")
    assert hub.repos == {"someone/federated": "private"}
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert hub.files["someone/federated"] == written
    assert "sentence-transformers/all-MiniLM-L6-v2" in written["README.md"].decode()


def test_hub_that_refuses_is_reported_before_the_model_is_loaded(plain, capsys, monkeypatch):
    with fake_hub(monkeypatch, token=SECRET[:-1]):
        assert main.main(["export", str(plain), "--push=someone/federated"]) == 2
    error = capsys.readouterr().err
    assert "The hub did not take the model for someone/federated" in error and SECRET not in error
    with fake_hub(monkeypatch, token=SECRET) as hub:
        assert main.main(["export", str(plain), "--push=another/federated"]) == 2
    assert "permission to write" in capsys.readouterr().err and hub.repos == {}


def test_adapter_of_a_base_on_this_machine_is_not_pushed():
    with pytest.raises(InputError, match="nobody else could load"):
        push.check_base("my-bert", "someone/model")


def test_current_folder_is_not_replaced(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        assert main.main(["export", str(plain), f"--out={out}"]) == 2
        assert f"Output {out} is the folder you are in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_write_error_is_reported_in_one_sentence(plain, tmp_path, capsys, monkeypatch):
    """A folder without permission, a full disk in the middle of the weights, a file in the way."""
    (tmp_path / "file").write_text("")
    assert main.main(["export", str(plain), f"--out={tmp_path / 'file' / 'new'}"]) == 2
    assert "/new cannot be written (" in capsys.readouterr().err

    def full(*given, **options):
        raise SafetensorError("IO error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("fedjax_lora.interop.save_adapter", full)
        assert main.main(["export", str(plain), f"--out={tmp_path / 'new'}"]) == 2
    assert "/new cannot be written (IO error: No space left" in capsys.readouterr().err

    folder = shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(folder / "figures")
    (folder / "figures").write_text("")
    assert main.main(["inspect", str(folder), "--redraw"]) == 2
    assert f"Output folder {folder} cannot be written (File exists)" in capsys.readouterr().err

    def refused(*given, **options):  # as root every folder can be written
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refused)
    assert main.main(["inspect", str(plain), "--redraw"]) == 2
    assert f"{plain} cannot be written (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_options_without_effect_are_refused(command, merged, capsys):
    assert main.main([command, str(merged), "--model=minilm", "--pooling=mean"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{merged} is a classifier without an adapter" in error
    assert "--model is only for adapters" in error and "--pooling is only for adapters" in error


@pytest.mark.parametrize(
    "words",
    [
        ["--method=zero_padding", "--scale=alpha/r", "--epochs=8", "--learning-rate=0.03"],
        ["--method=flora", "--learning-rate=0.1"],
    ],
    ids=["the scale depends on the rank", "the base is changed"],
)
def test_rank_cut_is_equal_for_run_and_adapter(words, tmp_path):
    """Whether clients are asked for or not; and a rank that it does not have leaves it whole."""
    folder = run(tmp_path / "run", *words, "--ranks=tiers(ranks=[1,4])")
    alone = evaluate(EvaluateOptions(where=folder, ranks=(1, 300)))
    both = evaluate(EvaluateOptions(where=folder, clients=True, ranks=(1, 300)))
    assert [row["rank"] for row in alone["ranks"]] == [1, 300]
    assert [row["rank"] for row in both["ranks"]] == [1, 4, 300]
    whole = alone["global"]["loss"]
    cut, all_of_it = (row["loss"] for row in alone["ranks"])
    assert all_of_it == whole
    assert abs(cut - whole) > 5e-5  # well above the tolerance below; how much is the task's
    assert both["ranks"][0]["loss"] == pytest.approx(cut, abs=1e-5)
    assert both["ranks"][2]["loss"] == pytest.approx(whole, abs=1e-5)


def test_clients_of_a_run_without_checkpoints_are_refused(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    assert main.main(["evaluate", str(folder), "--clients"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert main.main(["evaluate", str(folder)]) == 0
    shutil.rmtree(folder / "adapter")
    assert main.main(["evaluate", str(folder)]) == 2
    assert "is not finished" in capsys.readouterr().err

"""The record that all machines share, and what is refused before anything is loaded."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.cli import deploy as deploy_commands
from fedjax_lora.core.errors import InputError
from fedjax_lora.deploy import client, kits, spec
from fedjax_lora.deploy.exchange import Exchange
from fedjax_lora.deploy.message import Message, to_bytes
from fedjax_lora.deploy.server import Registered, register, run_config
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.deploy.wire import Rules
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.runs.config import DataConfig, RunConfig
from tests._helpers import command_line, problems, tiny_runs

SPEC = FederationSpec(
    config=RunConfig(data=DataConfig(task="file")),
    classes=("ham", "spam"),
    sites=("a", "b"),
    ranks=(2, 4),
    most_examples=50,
)

KINDS = (("site", "client"), ("server", "server"))
COLUMNS = deploy_commands.Columns(text="body")

REFUSED = {"fedsa_lora"}


def changed(**values) -> FederationSpec:
    return dataclasses.replace(SPEC, **values)


def test_a_spec_is_read_as_it_was_written(tmp_path):
    SPEC.write(tmp_path)
    assert spec.read(tmp_path) == SPEC
    assert spec.read(tmp_path).digest == SPEC.digest
    assert changed(deadline=601).digest != SPEC.digest


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"classes": ("ham",)}, "two classes"),
        ({"classes": ("ham", "ham")}, "two classes"),
        ({"ranks": (2,)}, "a rank for each"),
        ({"ranks": (2, 0)}, "at least 1"),
        ({"sites": ("a", "a")}, "distinct names"),
        ({"sites": ("a", "../b")}, "distinct names"),
        ({"sites": ("a", "server")}, "distinct names"),
        ({"least": 3}, "1 to 2 answers"),
        ({"deadline": 0}, "at least 1"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        changed(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("federation.heads", "local"),
        ("federation.faults", ("dropout(probability=0.1)",)),
        ("federation.client_weights", "tokens"),
        ("federation.server_mode", "buffered"),
        ("data.validation_examples", 5),
        ("lora.adapter", "x"),
        ("lora.lora_dropout", 0.1),
        ("model.dropout", 0.1),
        ("execution.mode", "sharded"),
    ],
)
def test_what_only_a_simulation_has_is_refused(name, value):
    with pytest.raises(InputError, match=r"has no .* yet; leave it out"):
        changed(config=tiny_runs.change(SPEC.config, {name: value}))


@pytest.mark.parametrize("name", methods.METHODS)
def test_methods_that_messages_cannot_carry_are_refused_by_name_and_reason(name):
    """By what they are: they change the base, or keep a part of the adapter on the client."""
    if name in REFUSED:
        with pytest.raises(InputError, match=f"'{name}' cannot be deployed yet: "):
            spec.check_method(name, (2, 2))
    else:
        spec.check_method(name, (2, 2))


def test_a_method_of_equal_ranks_is_refused_for_others():
    with pytest.raises(InputError, match="needs clients of one rank"):
        changed(config=tiny_runs.change(SPEC.config, {"federation.method": "fedit"}))


@pytest.mark.parametrize(
    ("ranks", "want"), [("table(ranks=[3, 1])", (3, 1)), ("fixed(rank=4)", (4, 4))]
)
def test_ranks_of_sites_are_those_of_a_simulation(ranks, want):
    config = tiny_runs.change(SPEC.config, {"federation.ranks": ranks})
    assert spec.site_ranks(config, 2) == want


@pytest.mark.parametrize("ranks", ["budget(bytes=[1e5])", "loss_based(low=2, high=4, share=0.5)"])
def test_ranks_that_need_more_than_their_number_are_refused(ranks):
    config = tiny_runs.change(SPEC.config, {"federation.ranks": ranks})
    with pytest.raises(InputError, match="list them"):
        spec.site_ranks(config, 2)


def answer(id: int, examples: object = 7, **other) -> bytes:
    values = {"digest": SPEC.digest, "client": id, "examples": examples, "rank": 2, "kernels": ""}
    return to_bytes(Message({}, values | other))


def asked(answers: dict[int, bytes], known=()) -> dict[int, tuple[int, int]]:
    earlier = {k: Registered(*one) for k, one in dict(known).items()}
    return {**register(SPEC, "base", lambda data: answers, earlier).sites}


def test_sites_say_how_many_examples_they_have_up_to_a_limit_and_their_rank():
    assert asked({0: answer(0), 1: answer(1, 10**6)}) == {0: (7, 2), 1: (50, 2)}
    assert asked({0: answer(0)}, {1: (9, 4)}) == {0: (7, 2), 1: (9, 4)}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({0: answer(0)}, "Site 'b' has not said"),
        ({0: answer(0), 1: answer(0)}, "Site 'b' cannot take part: .*client"),
        ({0: answer(0, -1), 1: answer(1)}, "examples = -1"),
        ({0: answer(0, 1.5), 1: answer(1)}, "examples = 1.5"),
        ({0: answer(0, digest="x"), 1: answer(1)}, "digest"),
        ({0: answer(0, rank=5), 1: answer(1)}, "rank = 5, must be from 1 to 4"),
        ({0: answer(0, kernels=3), 1: answer(1)}, "no text .* as kernels"),
        ({0: b"", 1: answer(1)}, "Site 'a' cannot take part"),
    ],
)
def test_a_site_that_does_not_register_as_it_must_is_named(answers, words):
    with pytest.raises(InputError, match=words):
        asked(answers)


def test_a_site_that_comes_back_with_another_file_is_refused():
    with pytest.raises(InputError, match="has 7 examples and rank 2, and had 9 and 2"):
        asked({0: answer(0), 1: answer(1)}, {0: (9, 2)})
    with pytest.raises(InputError, match="has 7 examples and rank 2, and had 7 and 4"):
        asked({0: answer(0), 1: answer(1)}, {0: (7, 4)})


@pytest.mark.parametrize(
    ("task", "classes", "words"),
    [
        ("instructions", ("a", "b"), "no classes"),
        ("file(train='/home/me/a.csv')", ("a", "b"), "names no files or columns"),
        ("mrpc", ("a", "b"), "file or instructions"),
        ("file(metric='pearson')", (), "no scores as labels"),
    ],
)
def test_a_task_that_sites_cannot_share_is_refused(task, classes, words):
    config = RunConfig(data=DataConfig(task=task))
    with pytest.raises(InputError, match=words):
        changed(config=config, classes=classes)


def test_a_spec_holds_no_name_of_a_file_or_column():
    """Kits hold it, and the server's folders are nobody else's business."""
    own = deploy_commands._task(pathlib.Path("/secret/test.csv"), COLUMNS, language=False)
    made = deploy_commands._spec(RunConfig(), ("a", "b"), ("x", "y"), own, 1, 60)
    text = json.dumps(made.to_record())
    assert "secret" in own and "body" in own
    assert "secret" not in text and "body" not in text


def test_a_site_chooses_its_rank_or_says_its_memory_and_the_server_stores_the_largest():
    config = run_config(SPEC, ranks=[1, 3])
    assert config.federation.ranks == "table(ranks=[1, 3], most=4)"
    layer = LoraSpec(targets=(LoraTarget("out", 5, 7, None),), rank=4, alpha=4.0)
    kernel, bias = np.zeros((5, 7), np.float32), np.zeros(3, np.float32)
    params = {"out": {"kernel": kernel}, "head": {"bias": bias}}
    one, fixed = 4 * 4 * 12, 4 * 35 + 4 * 12  # value, gradient and two moments

    def rank(**options):
        own = client.SiteOptions(name="a", train="x.csv", **options)
        return client.chosen_rank(SPEC, own, layer, params)

    assert (rank(), rank(rank=3)) == (2, 3)
    assert [rank(memory=fixed + n * one + 5) for n in (1, 3, 40)] == [1, 3, 4]
    with pytest.raises(InputError, match="rank from 1 to 4"):
        rank(rank=5)
    with pytest.raises(InputError, match="Rank 1 needs"):
        rank(memory=fixed)
    with pytest.raises(InputError, match="leave out one"):
        rank(rank=1, memory=10)


def test_an_exchange_names_the_site():
    exchange = Exchange(Rules(problems.STUB, {}), "d", lambda round, given: {}, names=("a",))
    assert exchange.name(0) == "site 'a'"
    assert exchange.name(4) == "client 4"


def test_options_of_a_site_are_read_as_they_were_written(tmp_path):
    own = client.SiteOptions(name="a", train="x.csv", updates=("clip(norm=1.0)",))
    own.write(tmp_path)
    assert client.read_options(tmp_path) == own
    (tmp_path / client.FILE).write_text(json.dumps({"name": "a"}), encoding="utf-8")
    with pytest.raises(InputError, match="no options of a site"):
        client.read_options(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_a_kit_with_files_outside_of_it_is_refused(name, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "kit.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(InputError, match="no kit"):
        kits.unzipped(tmp_path / "kit.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["kit.zip"]


def test_a_job_holds_the_names_of_two_classes_and_no_code(tmp_path):
    job = kits.write_job(tmp_path / "job", SPEC, {"out": "x"})
    files = {path.relative_to(job).as_posix() for path in job.rglob("*") if path.is_file()}
    client, server = (f"app_{n}/config/config_fed_{m}.json" for n, m in KINDS)
    assert files == {"meta.json", server, client}
    apps = json.loads((job / "meta.json").read_text("utf-8"))["deploy_map"]
    assert apps == {"app_server": ["server"], "app_site": ["a", "b"]}
    text = (job / client).read_text("utf-8")
    assert kits.EXECUTOR in text and spec.from_record(
        json.loads(text)["executors"][0]["executor"]["args"]["spec"]
    ) == SPEC  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["deploy", "tri"], "did you mean 'try'"),
        (["client", "none.zip", "--train", "a.csv"], "none.zip is no kit"),
    ],
)
def test_wrong_commands_are_answered_in_a_sentence(words, sentence, capsys):
    assert command_line.one_sentence(words, capsys, sentence)

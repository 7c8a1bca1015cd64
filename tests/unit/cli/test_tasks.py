"""``fedjax-lora tasks``: the list, the options of a task, and examples of its data."""

import json

import pytest

from fedjax_lora.cli import tasks
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.data import find_task
from fedjax_lora.data.datasets.registry import factories
from fedjax_lora.runs.config import schema


def printed(capsys, *args):
    tasks.main(args)
    return capsys.readouterr().out


def test_every_option_of_every_task_has_help():
    for name, factory in factories().items():
        for option in registry.options(factory):
            assert option.meaning.endswith("."), (name, option)
            assert option.values, (name, option)


@pytest.mark.parametrize("name", tasks.OWN)
def test_tasks_for_own_data_show_options_and_valid_examples(name, capsys, monkeypatch):
    """All options and three examples of how the task is written, each of them possible."""
    monkeypatch.setenv("COLUMNS", "200")
    text = printed(capsys, name)
    for option in registry.options(factories()[name]):
        assert option.name in text
    for spec in tasks.OWN[name]:
        assert spec in text
        assert find_task(spec).name == name


def test_run_help_names_all_options_of_file_tasks():
    with open(schema.__file__) as file:
        text = file.read()
    words = text.partition("Options of file:")[2].partition(";")[0].replace(",", " ").split()
    assert words == [option.name for option in registry.options(factories()["file"])]


def test_own_files_are_shown_with_three_examples(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = "".join(f"text {n},{'ab'[n % 2]},u{n}\n" for n in range(5))
    (tmp_path / "a.csv").write_text("text,label,who\n" + rows + "\x1b[31mred,a,u9\n")
    spec = "file(train='a.csv', test='a.csv', group='who')"
    text = printed(capsys, spec, "--data-dir", str(tmp_path))
    assert "2 classes: a, b" in text and "6 natural clients" in text
    assert "6 training and 6 test examples" in text
    assert text.count("label: ") == 3 and "text: text 2" in text and "text 3" not in text
    assert "\x1b" not in text


def test_conversation_examples_mark_the_learned_turns(capsys, tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    text = printed(
        capsys, "conversations(train='a.jsonl', test='a.jsonl')", "--data-dir", str(tmp_path)
    )
    assert "user: hi" in text and "assistant (learned): yo" in text


def test_task_that_cannot_be_loaded_is_described_with_the_reason(capsys):
    text = printed(capsys, "gsm8k", "--data-dir", "/nowhere")
    assert "answer_tokens" in text and "metric: exact_match" in text
    assert "No examples are shown: There is no folder /nowhere" in text
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        tasks.main(["gsm8"])

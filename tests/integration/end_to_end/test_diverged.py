"""The run of a diverged model ends normally and reports missing scores."""

import io
import json
import math

import pytest
from rich.console import Console

import fedjax_lora as fl
from fedjax_lora import models
from fedjax_lora.cli import main
from fedjax_lora.cli.terminal import print_summary
from fedjax_lora.evaluation import metrics
from fedjax_lora.interop import ModelMetadata, metadata, model_card
from fedjax_lora.runs import plots
from tests._helpers import tiny_runs

NEVER = {"perplexity": None, "loss": None}


def test_diverged_run_writes_all_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "mean_loss", lambda *given, **options: math.nan)
    made = fl.run(tiny_runs.CONFIG, assets=tiny_runs.assets(), out=tmp_path / "run")
    assert made.summary["loss"] is None and made.summary["accuracy"] >= 0
    assert json.loads((made.out / "summary.json").read_text())["loss"] is None
    assert (made.out / "figures" / "accuracy.png").is_file()
    assert "| loss | not finite |" in (made.out / "adapter" / "README.md").read_text()
    said = metadata.read(made.out / "adapter")
    assert said is not None and said.results["loss"] is None, "the adapter can be used again"
    capsys.readouterr()
    monkeypatch.setattr("fedjax_lora.data.find_task", lambda spec: tiny_runs.assets().task.task)
    assert main.main(["inspect", str(made.out), "--redraw"]) == 0
    assert "  loss = -" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("start", [None, 9.5])
def test_non_finite_perplexity_is_reported(start, tmp_path):
    summary = NEVER | {
        "start_perplexity": start, "rounds": 3, "seconds": 1.0, "train_test_overlap": 0,
        "skipped_examples": 0,
    }  # fmt: skip
    text = io.StringIO()
    print_summary(Console(file=text, width=200), summary, "perplexity", tmp_path)
    before = "not finite" if start is None else "9.5000"
    assert f"perplexity not finite (before training: {before}) after 3 rounds" in text.getvalue()

    beat = plots.to_beat(summary, "perplexity")
    assert beat == (None if start is None else ("before training", 9.5))
    records = [{"round": n, "train_loss": None, **NEVER} for n in (1, 2)]
    plots.history(tiny_runs.CONFIG, "perplexity", records, summary).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_diverged_language_model_has_a_model_card(tmp_path):
    said = ModelMetadata(
        base="tiny", base_sha256="0", language=True, task="made_up", metric="perplexity",
        results=NEVER,
    )  # fmt: skip
    base = models.tiny(family="llama", num_labels=None)
    model_card.write(tmp_path, said, model_card.ADAPTER, pretrained=base)
    text = (tmp_path / "README.md").read_text()
    assert "| perplexity | not finite |" in text and "metric_value" not in text
    said.write(tmp_path)
    assert metadata.read(tmp_path) == said

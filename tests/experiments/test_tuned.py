"""Comparisons with a rate for every arm: what is run, which rate is taken, what the table says."""

from experiments.papers import open_claims
from experiments.studies import language_model
from experiments.tools import tuned
from experiments.tools.study import Study, distinct
from experiments.tools.tuned import TUNING_SEED
from fedjax_lora import methods
from fedjax_lora.core import registry

EVERY = [*open_claims.COMPARISONS, language_model.CHAT]


def test_every_arm_has_the_same_budget_and_other_seeds_than_the_reported_ones():
    for of in EVERY:
        tries = distinct([tuned.tuning_part(of)])
        runs = distinct(tuned.reported_parts(of, {}))
        assert len(tries) == len(of.arms) * len(of.tasks) * len(of.rates)
        assert len(runs) == len(of.arms) * len(of.tasks) * len(of.seeds)
        assert {c.config.seed for c in tries} == {TUNING_SEED}
        assert TUNING_SEED not in of.seeds
        assert all(c.config.data.validation_examples for c in tries)
        for cell in runs:
            assert registry.parse(cell.config.federation.method)[0] in methods.METHODS


def test_the_best_rate_is_the_highest_accuracy_or_the_lowest_perplexity():
    for of, scores in ((open_claims.ACCEPTABLE, (0.1, 0.9, 0.2)), (language_model.CHAT, (9, 3))):
        part, arm, task = tuned.tuning_part(of), [*of.arms][1], of.tasks[0]
        records = {
            part.config(tuned.tried(arm, rate), task, TUNING_SEED): {
                "history": [{f"validation_{of.metric}": score}]
            }
            for rate, score in zip(of.rates, scores, strict=True)
        }
        assert tuned.best_rate(of, records, arm, task) == of.rates[1]
        assert tuned.best_rate(of, {}, arm, task) == of.rates[0]


def test_the_table_has_differences_from_the_first_arm(tmp_path, monkeypatch):
    of = open_claims.THREE_CLIENTS
    records = {}
    (part,) = tuned.reported_parts(of, {})
    for arm, value in zip(of.arms, (0.7, 0.8), strict=True):
        for seed in of.seeds:
            score = value + 0.01 * (seed % 2)
            records[part.config(arm, "ag_news", seed)] = {"history": [{"accuracy": score}]}
    monkeypatch.setattr(Study, "records", lambda self, size: records)
    monkeypatch.setattr(Study, "home", lambda self: tmp_path)
    tuned.write(open_claims.STUDY, open_claims.COMPARISONS)
    text = (tmp_path / "results" / "table.md").read_text("utf-8")
    assert "| ag_news | HLoRA, mixed ranks | 80.50 ± 0.53 | +10.00 [+10.00, +10.00] |" in text
    assert "| ag_news | naive, mixed ranks | 70.50 ± 0.53 | - |" in text
    assert text.count("Not yet run.") == 2

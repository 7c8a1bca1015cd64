"""Update transforms, faults and server optimizers from the command line to the metrics."""

import json

import pytest

from fedjax_lora import federated
from fedjax_lora.cli import main
from fedjax_lora.runs import compilation, config
from tests._helpers.small_options import small

SMALL = small(rounds=2, max_steps=2, method="fed_plora")


def test_run_accepts_all_transform_options(tmp_path, monkeypatch):
    handed = {}

    def watch(module, name):
        """Keep the options that a run hands over."""
        inner = getattr(module, name)

        def watched(*args, **options):
            handed.update(options)
            return inner(*args, **options)

        monkeypatch.setattr(module, name, watched)

    watch(compilation, "LocalTraining")
    watch(federated, "compile_round")
    out = tmp_path / "run"
    updates = ("gaussian_noise(multiplier=2.0, norm=0.5)", "int8", "median")
    words = ["--updates", *updates, "--server-optimizer=adam(learning_rate=0.02)", "--prox=0.1"]
    assert main.main(["run", *SMALL, *words, f"--out={out}"]) == 0
    assert handed["prox"] == 0.1
    assert [update.stage for update in handed["updates"]] == ["client", "wire", "server"]
    assert handed["server_optimizer"] is not None
    made = config.load(out / "config.json")
    assert made.federation.updates == updates
    assert made.federation.server_optimizer == "adam(learning_rate=0.02)"
    assert made.local.prox == 0.1
    lines = (out / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert 0 < first["epsilon_if_cohorts_stay_secret"] < first["epsilon"] < second["epsilon"]
    # Two components of query and value of one layer, with an index each, and the head.
    component, head = 2 * (384 + 384), 384 * 10 + 10
    matrices = 2 * 2 + 2
    assert first["up_bytes"] == 2 * (2 * component + head + 4 * matrices + 2 * 4)
    assert first["down_bytes"] == 2 * 4 * (2 * component + head)
    assert first["rejected"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--updates", "clipp(norm=1.0)"], "did you mean 'clip'"),
        (["--updates", "int8", "clip(norm=1.0)"], "out of order"),
        (["--server-optimizer=adamm"], "did you mean 'adam'"),
        (["--server-optimizer=adam", "--method=hlora"], "'hlora' does not"),
        (["--prox=-1"], "prox must be at least 0"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence(words, sentence, tmp_path, capsys):
    assert main.main(["run", *SMALL, *words, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fedjax-lora: ") and sentence in error
    assert not (tmp_path / "out").exists()

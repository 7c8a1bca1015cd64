"""The command line of a comparison."""

import subprocess
import sys

import pytest

from fedjax_lora.cli import compare, main
from fedjax_lora.runs.config import demo
from fedjax_lora.runs.sweep import runner
from tests._helpers.small_options import small

SMALL = small()


@pytest.fixture
def asked(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "execute", lambda *given: seen.append(given) or 0)
    return seen


def test_options_are_parsed_into_a_grid(asked, tmp_path):
    words = ["compare", "--methods", "hlora", "replication(inner='uniform')", "--seeds", "0", "2",
             "--vary", "local.batch=8,16", "--vary", "local.clip=[1.0, null]",
             "--cohort=5", f"--out={tmp_path}"]  # fmt: skip
    assert main.main(words) == 0
    ((grid, out, _),) = asked
    assert grid.methods == ("hlora", "replication(inner='uniform')")
    assert grid.seeds == (0, 2) and out == tmp_path
    assert grid.vary == {"local.batch": (8, 16), "local.clip": (1.0, None)}
    assert grid.base.federation.cohort == 5
    assert grid.base.local == demo().local, "without a task, the demo's options"


def test_default_grid_is_the_method_and_seed_of_the_config(asked):
    assert main.main(["compare", "--task=ag_news"]) == 0
    assert (asked[0][0].methods, asked[0][0].seeds) == (("fed_plora",), (0,))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method=hlora"], "takes --methods"),
        (["--seed", "1"], "takes --seeds"),
        (["--vary=local.batch"], "field=value"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence(words, sentence, asked, capsys):
    assert main.main(["compare", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert asked == []


def test_help_needs_no_jax():
    code = "import sys; from fedjax_lora.cli.main import main\ntry: main(['compare', '--help'])\n"
    code += "except SystemExit: pass\nassert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("--methods", "--seeds", "--vary", "--learning-rate", "Example"):
        assert word in done.stdout


def test_comparison_prints_summary_and_failures(tmp_path, capsys, monkeypatch):
    """One method fails, and would lose the other if it could; then it does not."""
    real = runner.run

    def run(config, **options):
        if config.federation.method == "flora":
            raise MemoryError("too large")
        return real(config, **options)

    words = ["compare", *SMALL, "--methods", "flora", "hlora", f"--out={tmp_path / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", run)
        assert main.main(words) == 1
    printed = capsys.readouterr().out
    assert "[1/2] flora, seed=0: FAILED" in printed and "[2/2] hlora, seed=0: accuracy" in printed
    assert "failed: flora, seed=0: MemoryError: too large" in printed
    assert main.main([*words, "--methods", "hlora"]) == 0
    printed = capsys.readouterr().out
    assert "[1/" not in printed and "report in" in printed
    assert printed.splitlines()[0].split()[:2] == ["method", "accuracy"]

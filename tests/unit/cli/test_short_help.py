"""Help that is made for a reader: the first day's options, a method, and tab completion."""

import subprocess

import pytest

from fedjax_lora.cli import completion, main, short_help
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.method_description import describe


def test_every_field_of_a_config_has_a_docstring():
    fields = set(short_help.field_docs())
    values = configs.to_dict(configs.RunConfig())
    names = {f"{g}.{n}" for g, group in values.items() if g != "seed" for n in group} | {"seed"}
    assert fields == names and set(short_help.FIRST_DAY) <= names


def test_run_help_is_short_and_help_all_has_every_option(capsys):
    with pytest.raises(SystemExit) as short:
        main.main(["run", "--help"])
    text = capsys.readouterr().out
    assert short.value.code == 0 and "--method" in text and "--mesh" not in text
    assert len(text.splitlines()) < 60
    with pytest.raises(SystemExit) as whole:
        main.main(["run", "--help-all"])
    assert whole.value.code == 0 and "--mesh" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hlora", "flora", "hlora(sigma='b')", "rolora"])
def test_method_description_has_its_paper_and_traffic(name, capsys):
    assert main.main(["methods", name]) == 0
    text = capsys.readouterr().out
    assert "arXiv" in text and "bytes up" in text and "Args:\n\n" not in text


def test_traffic_of_a_method_matches_a_hand_count():
    """Two factors of rank 8 on 768 x 768 in float32."""
    assert f"{2 * 8 * 768 * 4:,} bytes up, {2 * 8 * 768 * 4:,} down" in [*describe("hlora")][-1]


@pytest.mark.parametrize("name", ["hlra", "hlora(sgma='b')", "hlora("])
def test_unknown_methods_are_refused(name, capsys):
    assert main.main(["methods", name]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def complete(script: str, *words: str) -> list[str]:
    """Ask bash what it would offer for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _fedjax_lora\n"
    asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def script() -> str:
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: made.append(*text))
        main.completion_command(["bash"])
    return made[0]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], ["run"]),
        (["run", "--meth"], ["--method"]),
        (["run", "--method", "hl"], ["hlora"]),
        (["methods", "hl"], ["hlora"]),
        (["compare", "--seeds"], ["--seeds"]),
        (["export", "--client"], ["--client"]),
        (["export", "runs/"], []),  # left to the shell's own completion of files
        (["run", "--config", "a"], []),
    ],
)
def test_bash_completion_offers_matching_words(script, words, offered):
    assert complete(script, "fedjax-lora", *words) == offered


@pytest.mark.parametrize("words", [[], ["bash", "zsh"], ["tcsh"]])
def test_completion_for_other_shells_is_refused(words, capsys):
    assert main.main(["completion", *words]) == 2
    assert "bash" in capsys.readouterr().err


def test_zsh_completion_reuses_the_bash_functions():
    assert completion.script("zsh", {}, {}).startswith("autoload")

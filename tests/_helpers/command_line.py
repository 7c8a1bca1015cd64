"""Run commands in this process and check their output on invalid input."""

from fedjax_lora.cli import main
from tests._helpers.small_options import small

SMALL = small()


def one_sentence(words: list[str], capsys, sentence: str) -> bool:
    """Whether the command fails with status 2 and one line that holds the sentence."""
    assert main.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fedjax-lora: ")
    assert sentence in error, error
    return True

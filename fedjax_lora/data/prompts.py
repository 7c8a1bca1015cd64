"""Prompt formats of language tasks.

A format is a function from an instruction and its context (which may be empty) to the prompt.
The format `chat` applies the tokenizer's chat template, which also writes the end of the answer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError, unknown

Format = Callable[[str, str], str]

_ALPACA = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


class Prompted(NamedTuple):
    """An example in a prompt format.

    Attributes:
      prompt: the text given to the model.
      answer: the text that the model should generate.
      special: whether the tokenizer adds its special tokens to the prompt and its end-of-text token
        to the answer; False for a chat template, which writes them itself.
    """

    prompt: str
    answer: str
    special: bool


def alpaca(instruction: str, context: str) -> str:
    """Stanford Alpaca's prompts with and without context, as FedIT and FLoRA use them.

    The line break before the response is Alpaca-LoRA's.
    https://github.com/tatsu-lab/stanford_alpaca, https://github.com/tloen/alpaca-lora
    """
    if context:
        return (
            f"{_ALPACA}, paired with an input that provides further context. {_REQUEST}\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
        )
    return f"{_ALPACA}. {_REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def plain(instruction: str, context: str) -> str:
    """Instruction, context and a line break, for models with a short context window."""
    return "\n".join([instruction, *([context] if context else []), ""])


_WRITTEN: dict[str, Format] = {"alpaca": alpaca, "plain": plain}

FORMATS = ("chat", *_WRITTEN)


def check_format(name: str) -> None:
    """Check that a name is in `FORMATS` or ``"auto"``.

    Raises:
      InputError: an unknown name.
    """
    names = ("auto", *FORMATS)
    if name not in names:
        raise unknown("prompt format", name, names)


def resolve(name: str, tokenizer: Any) -> str:
    """Resolve ``"auto"`` to ``"chat"`` if the tokenizer has a chat template, else ``"alpaca"``.

    Raises:
      InputError: an unknown name, or ``"chat"`` for a tokenizer without a chat template.
    """
    check_format(name)
    templated = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        return "chat" if templated else "alpaca"
    if name == "chat" and not templated:
        raise InputError(
            f"The model's tokenizer ({type(tokenizer).__name__}) has no chat template; choose "
            "format='alpaca' or format='plain'."
        )
    return name


def format_example(
    name: str, tokenizer: Any, instruction: str, context: str, answer: str
) -> Prompted:
    """Format an example as prompt and answer.

    Args:
      name: a format, as `resolve` returns it.
      tokenizer: a `transformers` tokenizer, used by the format ``"chat"``.
      instruction: the instruction.
      context: the text that the instruction is about, or an empty string.
      answer: the completion.

    Raises:
      InputError: the chat template fails, or does not continue its own prompt with the answer.
    """
    if name != "chat":
        return Prompted(_WRITTEN[name](instruction, context), answer, True)
    content = "\n\n".join([instruction, *([context] if context else [])])
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    try:
        prompt = tokenizer.apply_chat_template(
            turns[:1], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template is a program and may raise anything
        raise InputError(
            f"The tokenizer's chat template fails ({error}); choose format='alpaca'."
        ) from error
    if not whole.startswith(prompt):
        raise InputError(
            "The tokenizer's chat template does not put an answer after its own prompt; choose "
            "format='alpaca'."
        )
    return Prompted(prompt, whole.removeprefix(prompt), False)

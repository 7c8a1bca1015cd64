"""How an instruction becomes the prompt that its completion follows.

A format takes an instruction and its context (which may be empty) and returns the prompt's text.
`chat` instead asks the tokenizer's chat template, and says what stands after an answer too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError, unknown

Format = Callable[[str, str], str]

_ALPACA = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


class Prompted(NamedTuple):
    """An example as text.

    Attributes:
      prompt: what the model is given.
      answer: what it is to write, to the end.
      special: whether the tokenizer adds its special tokens to the prompt, and its end-of-text
        token to the answer; a chat template has written them already.
    """

    prompt: str
    answer: str
    special: bool


def alpaca(instruction: str, context: str) -> str:
    """Stanford Alpaca's two prompts, with a line break before the response as in Alpaca-LoRA.

    https://github.com/tatsu-lab/stanford_alpaca, https://github.com/tloen/alpaca-lora; FedIT and
    FLoRA use them too.
    """
    if context:
        return (
            f"{_ALPACA}, paired with an input that provides further context. {_REQUEST}\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
        )
    return f"{_ALPACA}. {_REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def plain(instruction: str, context: str) -> str:
    """The instruction, its context and a line break: for models with a short window."""
    return "\n".join([instruction, *([context] if context else []), ""])


_WRITTEN: dict[str, Format] = {"alpaca": alpaca, "plain": plain}

FORMATS = ("chat", *_WRITTEN)


def check_format(name: str) -> None:
    """Refuse what is neither the name of a format nor ``"auto"``.

    Raises:
      InputError: it is none.
    """
    known = ("auto", *FORMATS)
    if name not in known:
        raise unknown("prompt format", name, known)


def resolve(name: str, tokenizer: Any) -> str:
    """The name of a format, where ``"auto"`` is the chat template if the tokenizer has one.

    Raises:
      InputError: an unknown name; a chat template is asked for, and the tokenizer has none.
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
    """An example in a format that `resolve` has returned.

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
            "The tokenizer's chat template does not put an answer behind its own prompt; choose "
            "format='alpaca'."
        )
    return Prompted(prompt, whole.removeprefix(prompt), False)

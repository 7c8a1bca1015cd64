"""Prompt formats of language tasks.

A format is a function from an instruction and its context (which may be empty) to the prompt.
The format `chat` applies the tokenizer's chat template, which also writes the end of the answer.

A template is a program, and may print today's date. Prompts of a run are the same on any day: the
date that a template prints is an argument.
"""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data.turns import Turn

Format = Callable[[str, str], str]

_CODE = re.compile(r"%[-_^#0-9EO]*[a-zA-Z]")
"""Codes of `strftime`, with the flags of C libraries."""

DATE = "2024-07-26"
"""Date that chat templates print by default: the one in Llama's templates."""

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


def raw(instruction: str, context: str) -> str:
    """Instruction and context as they are, for texts that are whole prompts."""
    return instruction + context


_WRITTEN: dict[str, Format] = {"alpaca": alpaca, "plain": plain, "raw": raw}

FORMATS = ("chat", *_WRITTEN)


def check_format(name: str) -> None:
    """Check that a name is in `FORMATS` or ``"auto"``.

    Raises:
      InputError: an unknown name.
    """
    names = ("auto", *FORMATS)
    if name not in names:
        raise unknown("prompt format", name, names)


def resolve(name: str, tokenizer: Tokenizer) -> str:
    """Resolve ``"auto"`` to ``"chat"`` if the tokenizer has a chat template, else ``"alpaca"``.

    Raises:
      InputError: an unknown name, ``"chat"`` for a tokenizer without a chat template, or a template
        that draws at random.
    """
    check_format(name)
    templated = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        name = "chat" if templated else "alpaca"
    if name == "chat" and not templated:
        raise InputError(
            f"The model's tokenizer ({type(tokenizer).__name__}) has no chat template; choose "
            "format='alpaca' or format='plain'."
        )
    if name == "chat":
        check_template(tokenizer)
    return name


def format_example(
    name: str,
    tokenizer: Tokenizer,
    instruction: str,
    context: str,
    answer: str,
    *,
    date: str = DATE,
) -> Prompted:
    """Format an example as prompt and answer.

    The prompt of a chat template is the one that it asks for an answer with, as other programs do.
    Where it writes its own answers behind another one (as templates do that ask for a thought
    first), the answer and what it writes behind it follow the prompt.

    Args:
      name: a format, as `resolve` returns it.
      tokenizer: a `transformers` tokenizer, used by the format ``"chat"``.
      instruction: the instruction.
      context: the text that the instruction is about, or an empty string.
      answer: the completion.
      date: date that a chat template prints, ``YYYY-MM-DD``.

    Raises:
      InputError: the chat template fails, or writes no answer.
    """
    if name != "chat":
        return Prompted(_WRITTEN[name](instruction, context), answer, True)
    content = "\n\n".join([instruction, *([context] if context else [])])
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    prompt = render(tokenizer, turns[:1], date, add_generation_prompt=True)
    whole = render(tokenizer, turns, date)
    before = prompt if whole.startswith(prompt) else _before_answer(tokenizer, turns[0], date)
    if not whole.startswith(before):
        raise InputError(
            "The tokenizer's chat template puts other text before one answer than before another; "
            "choose format='alpaca'."
        )
    return Prompted(prompt, whole.removeprefix(before), False)


def _before_answer(tokenizer: Any, turn: dict[str, str], date: str) -> str:
    """Return what a chat template writes before an answer.

    Raises:
      InputError: the template fails, or writes no answer.
    """
    answered = render(tokenizer, [turn, {"role": "assistant", "content": PROBE}], date)
    before, found, _ = answered.rpartition(PROBE)
    if not found:
        raise InputError(
            "The tokenizer's chat template does not put an answer after a prompt; choose "
            "format='alpaca'."
        )
    return before


def other_beginning(name: str, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Return how a format asks for answers and what it writes before them, if these differ.

    Args:
      name: a format, as `resolve` returns it.
      tokenizer: a `transformers` tokenizer.
    """
    if name != "chat":
        return None
    turn = {"role": "user", "content": "a"}
    asked = render(tokenizer, [turn], DATE, add_generation_prompt=True)
    before = _before_answer(tokenizer, turn, DATE)
    return None if before.startswith(asked) else (asked, before)


def render(tokenizer: Tokenizer, turns: list[dict[str, str]], date: str, **options: object) -> Any:
    """Apply a tokenizer's chat template on a given day.

    Args:
      tokenizer: a `transformers` tokenizer with a chat template.
      turns: messages with a role and a content.
      date: date that the template prints, ``YYYY-MM-DD``.
      **options: of `apply_chat_template`, which returns a text by default.

    Raises:
      InputError: the template fails, or draws at random.
    """
    template = _on_day(tokenizer.get_chat_template(), date)
    try:
        text = tokenizer.apply_chat_template(
            turns, **{"tokenize": False, "chat_template": template} | options
        )
    except Exception as error:  # a template is a program and may raise anything
        raise InputError(
            f"The tokenizer's chat template fails ({error}); choose format='alpaca'."
        ) from error
    return text


def _on_day(template: str, date: str) -> str:
    """Return a template whose ``strftime_now`` is of a given day.

    It is a macro in front of the template: `transformers` passes no functions to one.
    """
    if "strftime_now" not in template:
        return template
    day = datetime.datetime.fromisoformat(date)
    codes = sorted(set(_CODE.findall(template)), key=len, reverse=True)
    values = {"%%": "\0"} | {code: day.strftime(code) for code in codes} | {"\0": "%"}
    filters = "".join(f"|replace({json.dumps(x)},{json.dumps(y)})" for x, y in values.items())
    # The last expression keeps a line break that begins the template.
    macro = "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}{{ '' }}"
    return macro + template


def check_template(tokenizer: Tokenizer) -> None:
    """Refuse a chat template that draws at random: no two prompts would be the same.

    Raises:
      InputError: it does.
    """
    import jinja2  # which transformers needs for a chat template, and for nothing else
    from jinja2 import nodes

    templates = tokenizer.chat_template or {}
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        try:
            tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
        except jinja2.TemplateError:
            continue  # with tags that only transformers has, or it fails when it is applied
        used = {node.name for node in tree.find_all((nodes.Filter, nodes.Name))}
        if drawing := sorted(used & {"random", "lipsum"}):
            raise InputError(
                f"The tokenizer's chat template draws at random ({drawing[0]}), so training and "
                "predictions would read different prompts; choose format='alpaca'."
            )


def prints_date(name: str, tokenizer: Tokenizer) -> bool:
    """Whether prompts of a format, as `resolve` returns it, depend on the date."""
    if name != "chat":
        return False
    days = ("2001-02-03", "1999-11-30")  # no part of one is in the other
    one, other = (format_example(name, tokenizer, "a", "", "b", date=day) for day in days)
    return one != other


def turns_prompt(name: str, turns: Sequence[Turn], *, first: bool) -> str:
    """Write the turns between two answers, in a format that is no chat template.

    ``plain`` ends every turn with a line break. In ``alpaca`` what the system says takes the place
    of the preamble, which only the first prompt has. A single question is written as an
    instruction.

    Args:
      name: a format other than ``"chat"``.
      turns: turns of the system and the user.
      first: whether they begin the conversation.
    """
    if name == "alpaca":
        return _alpaca_turns(turns, first=first)
    line = "" if name == "raw" else "\n"
    return "".join(turn.text + line for turn in turns)


def _alpaca_turns(turns: Sequence[Turn], *, first: bool) -> str:
    system, question = (
        "\n\n".join(turn.text for turn in turns if turn.role == role) for role in ("system", "user")
    )
    if first and not system:
        return alpaca(question, "")
    preamble = f"{system}\n\n" if system else ""
    return f"{preamble}### Instruction:\n{question}\n\n### Response:\n"


class AnswerEnd(NamedTuple):
    """What stands behind an answer in the training, and so ends one that is generated.

    Attributes:
      ids: tokens that end an answer.
      text: text that ends an answer where no such token stands directly behind it; ``""`` if there
        is none.
    """

    ids: tuple[int, ...]
    text: str = ""

    def cut(self, answer: str) -> str:
        """Return an answer up to the text that ends it, without white space around it."""
        return (answer.partition(self.text)[0] if self.text else answer).strip()


def answer_end(name: str, tokenizer: Tokenizer, *, date: str = DATE) -> AnswerEnd:
    """Find the end of answers in a prompt format.

    In a chat template it is the first special token behind the answer, and the text before that.
    A template that writes nothing but white space there teaches no end.

    Args:
      name: a format, as `resolve` returns it.
      tokenizer: a `transformers` tokenizer.
      date: date that a chat template prints.

    Raises:
      InputError: as `format_example`.
    """
    end = tokenizer.eos_token_id
    of_text = () if end is None else (end,)
    if name != "chat":
        return AnswerEnd(of_text)
    written = format_example(name, tokenizer, "a", "", PROBE, date=date).answer
    tail = written.rpartition(PROBE)[2] if PROBE in written else ""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    special -= {tokenizer.unk_token_id}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    first = next((n for n, token in enumerate(ids) if token in special), None)
    if first is None:
        return AnswerEnd(of_text, tail.strip())
    before = tail.partition(tokenizer.convert_ids_to_tokens(ids[first]))[0]
    return AnswerEnd((*of_text, ids[first]), before.strip())


PROBE = "424242"
"""An answer that no template has a reason to change (not its case either) or holds itself."""

"""Conversations in files of every form, with chat templates of many shapes."""

import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import datasets
import transformers

from experiments.robustness.fuzz import bases, grammar, templates
from experiments.robustness.fuzz.case import Answer, Answers, Case, Subject
from fedjax_lora import data
from fedjax_lora.data import conversation_tokens, prompts

PART = "conversations"
ROLES = {"s": "system", "u": "user", "a": "assistant"}
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
BLANK = "  "

REWRITTEN = {
    "never": "",
    "thoughts": "{% if loop.last and m.role == 'assistant' %}<think> {% endif %}",
    "last question": "{% if m.role == 'user' and loop.index > messages | length - 2 %}"
    "now {% endif %}",
    "number of turns": "{{ messages | length // 2 }} ",
    "first turn": "{% if loop.first and messages | length < 4 %}begin {% endif %}",
}
"""What a template writes before a message, in ways that later messages change."""

CHOICES: dict[str, list[Any]] = {
    "talk": ["uaua", "ua", "suaua", "uauaua", "uuaua", "uaaua", "uau", "aua", "usaua", "uauba"],
    "rewritten": [*REWRITTEN],
    "form": ["openai", "sharegpt", "trl", "parts", "system column"],
    "file": ["jsonl", "json", "parquet"],
    "learn": ["all", "last"],
    "weight": [None, 0, 1],
    **{
        name: templates.CHOICES[name]
        for name in (
            "markers", "start", "system", "content", "end", "answer_end", "generation", "roles",
            "named",
        )
    },
}  # fmt: skip
"""In a talk ``b`` is a blank answer."""


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each option in turn."""
    return grammar.cases(PART, CHOICES, seed=6)


def write(case: Case, folder: pathlib.Path) -> Subject:
    """Save a file with a conversation, and a tokenizer with a template."""
    options = {name: values[0] for name, values in (templates.CHOICES | CHOICES).items()}
    options |= dict(case.options)
    words = bases.tokenizer("llama")
    text = template(options)
    words.chat_template = {"default": text, "tool_use": ""} if options["named"] else text
    words.save_pretrained(folder)
    talk = messages(options)
    _write_row(row(options, talk), folder / f"talk.{options['file']}")
    return Subject(
        theirs=functools.partial(_theirs, options, talk, folder),
        ours=functools.partial(_ours, options, folder),
    )


def template(options: Any) -> str:
    """The Jinja template of a case, in which a message may depend on later ones."""
    plain = templates.template(options)
    loop = "{% for m in messages %}"
    return plain.replace(loop, loop + REWRITTEN[options["rewritten"]])


def messages(options: Any) -> list[dict[str, Any]]:
    """The messages as OpenAI writes them."""
    talk: list[dict[str, Any]] = []
    for n, letter in enumerate(options["talk"]):
        role = ROLES.get(letter, "assistant")
        talk.append({"role": role, "content": BLANK if letter == "b" else f"{letter} {n}"})
    if options["weight"] is not None:
        first = next(m for m in talk if m["role"] == "assistant")
        first["weight"] = options["weight"]
    return talk


def row(options: Any, talk: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a file in the form of a case."""
    form = options["form"]
    if form == "trl":
        last = max(n for n, m in enumerate(talk) if m["role"] == "assistant")
        return {"prompt": talk[:last], "completion": talk[last : last + 1]}
    if form == "parts":
        parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in talk]
        return {"messages": parts}
    if form == "openai":
        return {"messages": talk}
    turns = [
        {"from": SHAREGPT[m["role"]], "value": m["content"]}
        | ({"weight": m["weight"]} if "weight" in m else {})
        for m in talk
    ]
    if form == "system column" and talk[0]["role"] == "system":
        return {"system": talk[0]["content"], "conversations": turns[1:]}
    return {"conversations": turns}


def _write_row(value: dict[str, Any], file: pathlib.Path) -> None:
    if file.suffix == ".parquet":
        datasets.Dataset.from_list([value]).to_parquet(file)
    else:
        file.write_text(json.dumps([value] if file.suffix == ".json" else value), encoding="utf-8")


def learned(options: Any, talk: list[dict[str, Any]]) -> list[int]:
    """Numbers of the answers that are learned."""
    answers = [n for n, m in enumerate(talk) if m["role"] == "assistant"]
    if options["form"] == "trl" or options["learn"] == "last":
        answers = answers[-1:]
    return [n for n in answers if talk[n].get("weight") != 0 and talk[n]["content"] != BLANK]


def _theirs(options: Any, talk: list[dict[str, Any]], folder: pathlib.Path) -> Answer:
    """Each learned answer with the prompt that `apply_chat_template` asks for it with."""
    words: Any = transformers.AutoTokenizer.from_pretrained(folder)
    begin = next(n for n, m in enumerate(talk) if m["role"] == "user")
    talk = [m for n, m in enumerate(talk) if n >= begin or m["role"] == "system"]
    pairs = []
    for n in learned(options, talk):
        prompt = words.apply_chat_template(talk[:n], tokenize=False, add_generation_prompt=True)
        whole = words.apply_chat_template(talk[: n + 1], tokenize=False)
        before = prompt
        if not whole.startswith(prompt):
            known = [*talk[:n], {"role": "assistant", "content": "77"}]
            begun = words.apply_chat_template(known, tokenize=False, continue_final_message=True)
            before = begun.removesuffix("77")
        pairs.append((prompt, whole.removeprefix(before)))
    return Answer(tuple(pairs))


def _ours(options: Any, folder: pathlib.Path) -> Answers:
    words: Any = transformers.AutoTokenizer.from_pretrained(folder)
    name = f"talk.{options['file']}"
    spec = f"conversations(train={name!r}, test={name!r}, learn={options['learn']!r})"
    (turns,) = data.load(spec, data_dir=str(folder)).train.turns or [()]
    pairs = []
    for parts in conversation_tokens.segments("chat", words, turns, date=prompts.DATE):
        text = ""
        for part in parts:
            if part.learned:
                pairs.append((text, part.text))
            text += part.text
    yield "segments", tuple(pairs)

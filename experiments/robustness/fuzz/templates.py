"""Chat templates of many shapes, applied by `transformers` and by us."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import transformers

from experiments.robustness.fuzz import bases, grammar
from experiments.robustness.fuzz.case import Answer, Answers, Case, Subject
from fedjax_lora.data import instruction_tokens, prompts

PART = "templates"
MARKERS = {
    "chatml": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama2": ("[{role}] ", " [/{role}]"),
    "llama3": ("<|start|>{role}<|end|>\n\n", "<|eot|>"),
    "colon": ("{role}: ", "\n"),
    "nothing": ("", ""),
    "letters": ("a b ", " c"),
}
CHOICES: dict[str, list[Any]] = {
    "markers": [*MARKERS],
    "start": ["", "{{ bos_token }}", "{{- bos_token -}}\n", "Cutting Knowledge\n"],
    "system": ["never", "always", "if given"],
    "content": ["{{ m.content }}", "{{ m['content'] | trim }}", "{{ m.content | upper }}"],
    "end": ["", "{{ eos_token }}", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"],
    "answer_end": ["", "{{ eos_token }}"],
    "generation": ["marker", "nothing", "marker and thought", "another one"],
    "roles": ["as they are", "model", "refuses two turns", "refuses system"],
    "loop": ["for", "indexed", "blocks"],
    "named": [False, True],
    "generation_block": [False, True],
    "instruction": ["a b c", " a ", "A\nb\n\nc", "{{ x }} {% if %}", "Grüße 🙂", "</s> <s>"],
    "context": ["", "x y", "\n z"],
    "answer": ["d e", " d", "e\n", "</s>", "", "a b c"],
}


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each option in turn."""
    return grammar.cases(PART, CHOICES, seed=4)


def write(case: Case, folder: pathlib.Path) -> Subject:
    """Save a tokenizer with the template; it is loaded again by both sides."""
    options = {name: values[0] for name, values in CHOICES.items()} | dict(case.options)
    words = bases.tokenizer("llama")
    text = template(options)
    named = {"default": text, "tool_use": "{{ messages }}"}
    words.chat_template = named if options["named"] else text
    words.save_pretrained(folder)
    return Subject(
        theirs=functools.partial(_theirs, options, folder),
        ours=functools.partial(_ours, options, folder),
    )


def template(options: Any) -> str:
    """The Jinja template of a case."""
    before, after = MARKERS[options["markers"]]
    system = {
        "never": "",
        "always": f"{before.format(role='system')}Be kind.{after}",
        "if given": "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}",
    }[options["system"]]
    check = {
        "refuses two turns": "{% if messages | length > 1 %}{{ raise_exception('one') }}"
        "{% endif %}",
        "refuses system": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}",
    }.get(options["roles"], "")
    role = "{{ m.role }}"
    if options["roles"] == "model":
        role = "{{ 'model' if m.role == 'assistant' else m.role }}"
    body = before.format(role=role) + _content(options) + after
    body += "{% if m.role == 'assistant' %}" + options["answer_end"] + "{% endif %}"
    loop = "{% for m in messages %}" + body + "{% endfor %}"
    if options["loop"] == "indexed":
        loop = (
            "{% for n in range(messages | length) %}{% set m = messages[n] %}" + body
            + "{% endfor %}"
        )  # fmt: skip
    if options["loop"] == "blocks":
        loop = "{%- for m in messages -%}\n  " + body + "\n{%- endfor -%}"
    name = "model" if options["roles"] == "model" else "assistant"
    begin = {
        "marker": before.format(role=name),
        "nothing": "",
        "marker and thought": before.format(role=name) + "<think>\n",
        "another one": "Answer: ",
    }[options["generation"]]
    asked = "{% if add_generation_prompt %}" + begin + "{% endif %}"
    return options["start"] + check + system + loop + options["end"] + asked


def _content(options: Any) -> str:
    if not options["generation_block"]:
        return options["content"]
    marked = "{% generation %}" + options["content"] + "{% endgeneration %}"
    return "{% if m.role == 'assistant' %}" + marked + "{% else %}" + options["content"] + (
        "{% endif %}"
    )  # fmt: skip


def _turns(options: Any) -> list[dict[str, str]]:
    content = "\n\n".join(filter(None, (options["instruction"], options["context"])))
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": options["answer"]},
    ]


def _theirs(options: Any, folder: pathlib.Path) -> Answer:
    """Prompt and conversation as texts, and the tokens of the prompt.

    Where the conversation does not begin with the prompt, what it has from its answer on follows.
    """
    words: Any = transformers.AutoTokenizer.from_pretrained(folder)
    turns = _turns(options)
    prompt = words.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    ids = words.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    whole = words.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt):
        known = [turns[0], {"role": "assistant", "content": "77"}]
        begun = words.apply_chat_template(known, tokenize=False, continue_final_message=True)
        whole = prompt + whole.removeprefix(begun.removesuffix("77"))
    return Answer({"prompt": prompt, "whole": whole, "ids": tuple(ids)})


def _ours(options: Any, folder: pathlib.Path) -> Answers:
    words: Any = transformers.AutoTokenizer.from_pretrained(folder)
    given = (options["instruction"], options["context"])
    example = prompts.format_example("chat", words, *given, options["answer"])
    ids = instruction_tokens.prompt_ids(
        [options["instruction"]], [options["context"]], words, format="chat"
    )
    whole = example.prompt + example.answer
    yield "format_example", {"prompt": example.prompt, "whole": whole, "ids": tuple(ids[0])}

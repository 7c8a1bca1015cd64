"""Chat templates: prompts are the same on any day, and answers end where the template ends them."""

import datetime

import pytest
from transformers.utils import chat_template_utils

from fedjax_lora import InputError, data
from fedjax_lora.data import prompts
from fedjax_lora.data.prompts import AnswerEnd, answer_end, format_example
from fedjax_lora.evaluation.task_types import TASK_TYPES
from fedjax_lora.interop import ModelMetadata
from fedjax_lora.runs.evaluate import _with_prompts_of
from tests._helpers.character_tokenizer import END, make_tokenizer

TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + 'TAIL' }}{% endfor %}"
ASKED = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
TODAY = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}"
OF_LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ 'Today: ' + date_string + '\n' }}"
)


def tokenizer(template: str, *special: str):
    made = make_tokenizer()
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made


class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 6)


@pytest.mark.parametrize("template", [TODAY, OF_LLAMA])
def test_prompts_are_the_same_on_any_day(template, monkeypatch):
    made = tokenizer(template + TURNS + ASKED)
    today = format_example("chat", made, "a", "", "b")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert format_example("chat", made, "a", "", "b") == today
    assert today.prompt.startswith("Today: 26 Jul 2024\n")
    other = format_example("chat", made, "a", "", "b", date="2026-11-27")
    assert other.prompt.startswith("Today: 27 Nov 2026\n")


def test_configured_date_appears_in_the_tokens(tmp_path):
    """And in those of its adapter's evaluation, whose metadata have it."""
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "a", "completion": "b"}\n{"instruction": "c", "completion": "d"}\n' * 3
    )
    spec = "instructions(train='a.jsonl', format='chat')"
    loaded = data.load(spec, data_dir=str(tmp_path), date="2026-11-27")
    made = tokenizer(TODAY + TURNS + ASKED)
    encoded = TASK_TYPES["language"].encode(loaded.task, loaded.train, made, 64, None)
    text = "".join(made.convert_ids_to_tokens(encoded.tokens.ids[0]))
    assert text.startswith("Today: 27 Nov 2026")

    trained = ModelMetadata(base="b", base_sha256="c", chat_date="2001-02-03")
    assert _with_prompts_of(loaded.task, trained).prompting.date == "2001-02-03"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("%d %B %Y", "26 July 2024"),
        ("%-m/%-d/%y, %A", "7/26/24, Friday"),
        ("%Y-%m-%dT%H:%M:%S", "2024-07-26T00:00:00"),
        ("100%% on %j", "100% on 208"),
        ("%^b %e, %03d%%d", "JUL 26, 026%d"),
    ],
)
def test_date_format_of_the_template_is_kept(code, printed):
    """Also by a name, in a macro, and behind a line break."""
    template = "\n{% macro day(f) %}{{ strftime_now(f) + '!' }}{% endmacro %}"
    template += "{% set f = CODE %}{{ day(f) }}"
    made = tokenizer(template.replace("CODE", repr(code)) + TURNS + ASKED)
    prompt = format_example("chat", made, "a", "", "b").prompt
    assert prompt == f"\n{printed}!user: aTAILassistant: "


def test_chat_templates_that_use_the_date_are_detected():
    assert prompts.prints_date("chat", tokenizer(TODAY + TURNS + ASKED))
    assert not prompts.prints_date("chat", tokenizer(TURNS + ASKED))
    assert not prompts.prints_date("alpaca", tokenizer(TODAY))


OTHER_BEGINNINGS = {
    "a thought": (
        TURNS + "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}{% endif %}",
        "user: aTAILassistant: <think>\n",
        " bTAIL",
    ),
    "another name": (
        TURNS + "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}",
        "user: aTAILAnswer:",
        " bTAIL",
    ),
    "an end behind all turns": (
        TURNS + "{{ '</s>' }}" + ASKED, "user: aTAIL</s>assistant: ", " bTAIL</s>",
    ),
    "an answer that is changed": (
        (TURNS + "{{ 'END' }}" + ASKED).replace("m['content']", "m['content'] | upper | trim"),
        "user: ATAILENDassistant: ",
        "BTAILEND",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_BEGINNINGS)
def test_answers_follow_the_generation_prompt_of_the_template(name):
    """Although it writes its own answers behind another one."""
    template, prompt, answer = OTHER_BEGINNINGS[name]
    made = tokenizer(template)
    assert format_example("chat", made, "a", "", " b") == (prompt, answer, False)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7"}]
    own = made.apply_chat_template(turns, tokenize=False).partition("7")[0]
    assert prompts.other_beginning("chat", made) == (
        made.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True),
        own,
    )
    tail = answer.strip()[1:]  # </s> is a token
    assert answer_end("chat", made).text == tail.removesuffix("</s>")


def test_consistent_templates_need_no_note():
    assert prompts.other_beginning("chat", tokenizer(TURNS + ASKED)) is None
    assert prompts.other_beginning("chat", tokenizer(TURNS)) is None
    assert prompts.other_beginning("plain", make_tokenizer()) is None


def test_template_prefix_that_depends_on_the_answer_is_refused():
    counted = TURNS.replace("m['content']", "m['content'] | length ~ m['content']")
    with pytest.raises(InputError, match="other text before one answer than before another"):
        format_example("chat", tokenizer(counted + "END" + ASKED), "a", "", "b")


@pytest.mark.parametrize(
    "template", ["{{ ['a', 'b'] | random }}", "{% if true %}{{ lipsum(n=1) }}{% endif %}"]
)
def test_template_with_random_output_is_refused(template):
    with pytest.raises(InputError, match=r"draws at random .*choose format='alpaca'"):
        prompts.resolve("auto", tokenizer(template + TURNS))
    assert prompts.resolve("alpaca", tokenizer(template)) == "alpaca"


@pytest.mark.parametrize(
    ("tail", "special", "text"),
    [
        ("<|im_end|>\\n", ["<|im_end|>"], ""),
        ("<|eot_id|>", ["<|start|>", "<|eot_id|>"], ""),
        (" </s>", [], ""),
        ("</s>\\n", [], ""),
        ("\\n### End\\n", [], "### End"),
        (" #END# <|im_end|>", ["<|im_end|>"], "#END#"),
        ("\\n", [], ""),
        ("", [], ""),
    ],
)
def test_answer_ends_at_the_template_text_that_follows_it(tail, special, text):
    made = tokenizer((TURNS + ASKED).replace("TAIL", tail), *special)
    ends = {made.convert_tokens_to_ids(token) for token in special[-1:]}
    end = answer_end("chat", made)
    assert (set(end.ids), end.text) == ({END, *ends}, text)


def test_plain_format_ends_with_the_end_of_text_token():
    assert answer_end("plain", make_tokenizer()) == AnswerEnd((END,))


def test_generated_answer_is_cut_at_its_end_marker():
    assert AnswerEnd((END,), "### End").cut(" yes\n### End\nmore ### End") == "yes"
    assert AnswerEnd((END,)).cut(" yes ### End\n") == "yes ### End"

"""Conversations and plain texts: the forms that people have, and what is learned of them."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import conversation_tokens, find_task, instruction_tokens, load, prompts
from fedjax_lora.data.turns import Turn
from fedjax_lora.evaluation.task_types import TASK_TYPES
from tests._helpers.character_tokenizer import make_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}BEGIN{{ m.content + eos_token }}END"
    "{% else %}{{ m.content + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN_CHATML = CHATML.replace("BEGIN", "").replace("END", "")
MARKED = CHATML.replace("BEGIN", "{% generation %}").replace("END", "{% endgeneration %}")

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]
OTHER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def sharegpt(messages):
    return [{"from": SHAREGPT[m["role"]], "value": m["content"]} for m in messages]


FORMS = {
    "openai": [{"messages": talk} for talk in (TALK, OTHER)],
    "sharegpt": [{"id": "1", "conversations": sharegpt(talk)} for talk in (TALK, OTHER)],
    "trl": [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in (TALK, OTHER)],
    "parts": [
        {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in talk]}
        for talk in (TALK, OTHER)
    ],
    "system column": [
        {"system": "be kind", "conversations": sharegpt(TALK[1:]), "tools": "[]"},
        {"system": "", "conversations": sharegpt(OTHER), "tools": None},
    ],
}

WRITERS = {
    "a.jsonl": lambda rows, path: pd.DataFrame(rows).to_json(path, orient="records", lines=True),
    "a.json": lambda rows, path: path.write_text(json.dumps(rows, indent=2)),
    "one.json": lambda rows, path: datasets.Dataset.from_list(rows).to_json(path),
    "a.parquet": lambda rows, path: datasets.Dataset.from_list(rows).to_parquet(path),
    "pandas.parquet": lambda rows, path: pd.DataFrame(rows).to_parquet(path),
    "saved": lambda rows, path: datasets.Dataset.from_list(rows).save_to_disk(path),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokenizer(template=None):
    made = make_tokenizer()
    made.chat_template = template
    return made


def read(rows, **options):
    """Load rows of a file as both training and test set."""
    with open("r.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    words = "".join(f", {name}={value!r}" for name, value in options.items())
    return load(f"conversations(train='r.jsonl', test='r.jsonl'{words})")


def encode(data, made, *, max_length=400):
    return TASK_TYPES["language"].encode(data.task, data.train, made, max_length, None)


def learned_texts(encoded, made, row=0):
    """The learned runs of a row as texts."""
    ids, types = encoded.tokens.ids[row], encoded.tokens.types[row]
    text = "".join(
        token if kind else "|"
        for token, kind in zip(made.convert_ids_to_tokens(ids), types, strict=True)
    )
    return [part for part in text.split("|") if part]


# -------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRITERS)
def test_common_conversation_formats_are_read_from_common_file_types(folder, form, name):
    WRITERS[name](FORMS[form], folder / name)
    data = load(f"conversations(train='{name}', test='{name}')")
    want = [tuple((m["role"], m["content"]) for m in talk) for talk in (TALK, OTHER)]
    assert [tuple(turn[:2] for turn in turns) for turns in data.train.turns] == want
    learned = [[turn.text for turn in turns if turn.learned] for turns in data.train.turns]
    assert learned == [["ciao"] if form == "trl" else ["hello", "ciao"], ["b"]]
    assert data.train.pairs == ["ciao", "b"]
    assert data.notes == ()


def test_structs_of_lists_of_older_datasets_versions_are_read(folder):
    rows = {
        "messages": [{key: [m[key] for m in talk] for key in TALK[0]} for talk in (TALK, OTHER)]
    }
    pd.DataFrame(rows).to_parquet(folder / "a.parquet")
    data = load("conversations(train='a.parquet', test='a.parquet')")
    assert [turn.text for turn in data.train.turns[0]] == [m["content"] for m in TALK]


def test_groups_and_categories_are_read_from_columns_and_json_objects(folder):
    rows = [{"messages": OTHER, "who": f"u{n}", "kind": "k"} for n in (2, 1, 2)]
    data = read(rows, group="who", category="kind")
    assert (data.groups, data.classes) == (("u1", "u2"), ("k",))
    assert data.train.groups.tolist() == [1, 0, 1]
    (folder / "c.json").write_text(json.dumps({"a": FORMS["openai"], "b": FORMS["openai"][:1]}))
    data = load("conversations(train='c.json', test='c.json')")
    assert data.train.groups.tolist() == [0, 0, 1]


def test_loss_covers_the_last_answer_or_answers_of_weight_one():
    data = read([{"messages": TALK}], learn="last")
    assert [turn.learned for turn in data.train.turns[0]] == [False] * 4 + [True]
    first_off = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]
    data = read([{"messages": first_off}])
    assert [turn.text for turn in data.train.turns[0] if turn.learned] == ["ciao"]


def test_turns_before_the_first_question_and_after_the_last_answer_are_dropped():
    talk = [{"role": "assistant", "content": "welcome"}, *OTHER, {"role": "user", "content": "?"}]
    data = read([{"messages": talk}, {"messages": OTHER}])
    assert [[turn.text for turn in turns] for turns in data.train.turns] == [["a", "b"]] * 2
    assert data.notes[0].startswith("1 of 2 conversations begin with an answer, which is left out")


def test_overlap_compares_conversations_up_to_the_last_answer():
    again = [*OTHER[:1], {"role": "assistant", "content": "another"}]
    with open("t.jsonl", "w") as file:
        file.write(json.dumps({"messages": again}) + "\n" + json.dumps({"messages": TALK}) + "\n")
    read([{"messages": OTHER}])
    assert load("conversations(train='r.jsonl', test='t.jsonl')").overlap == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"r.jsonl row 1: no column 'messages' \(columns: text\)"),
        ({"messages": "hi"}, "holds a text, not a list of messages; .* format='raw'"),
        ({"prompt": "a", "completion": "b"}, "column 'prompt' holds a text"),
        ({"messages": 3}, "holds 3, not a list of messages"),
        ({"messages": ["hi"]}, "message 1 of 'messages' is 'hi', not an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "is by 'tool'; the roles that are read"),
        ({"messages": [{"content": "x"}]}, "is by None"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "calls a tool, which is not read",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "holds None, not a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "has a part of type 'image_url'",
        ),
        ({"messages": [OTHER[0], OTHER[1] | {"weight": 0.5}]}, "weight is 0.5"),
        ({"messages": TALK, "system": "be bad"}, "or there is a system turn too"),
        ({"messages": OTHER, "tools": '[{"name": "f"}]'}, r"has a column 'tools' that is not"),
        (
            {"messages": OTHER, "chat_template_kwargs": {"enable_thinking": False}},
            "has a column 'chat_template_kwargs' that is not empty",
        ),
        (
            {"messages": [OTHER[0], OTHER[1] | {"reasoning_content": "because"}]},
            "message 2 of 'messages' has 'reasoning_content', which is not read",
        ),
        ({"messages": [OTHER[0], OTHER[1] | {"loss": "no"}]}, "loss is 'no'"),
    ],
)
def test_malformed_conversations_are_refused_in_one_sentence(row, message):
    with pytest.raises(InputError, match=message) as refused:
        read([row])
    assert "row 1" in str(refused.value) and "\n" not in str(refused.value)


def test_instructions_task_points_to_the_conversations_task(folder):
    (folder / "a.jsonl").write_text(json.dumps(FORMS["sharegpt"][0]))
    with pytest.raises(InputError, match=r"'conversations' are the task conversations\(train="):
        load("instructions(train='a.jsonl')")
    with pytest.raises(InputError, match=r"Unknown metric .*'bleu'"):
        find_task("conversations(train='a.jsonl', metric='bleu')")
    with pytest.raises(InputError, match="has no choices"):
        find_task("conversations(train='a.jsonl', metric='choice_accuracy')")


# ------------------------------------------------------------------------------------- chat formats


def test_answer_mask_of_a_marked_template_equals_transformers():
    """Turns, and what ends them: the mask of `apply_chat_template`."""
    made = tokenizer(MARKED)
    encoded = encode(read([{"messages": TALK}, {"messages": OTHER}]), made)
    want = made.apply_chat_template(
        [TALK, OTHER], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    for row in range(2):
        size = encoded.tokens.length[row]
        assert encoded.tokens.ids[row, :size].tolist() == want["input_ids"][row]
        assert encoded.tokens.types[row, :size].tolist() == want["assistant_masks"][row]
    assert learned_texts(encoded, made) == ["hello</s>", "ciao</s>"]


def test_answer_mask_of_an_unmarked_template_is_what_follows_the_prompt():
    """Oracle: the text of the whole conversation minus that of each prompt, by position."""
    made = tokenizer(PLAIN_CHATML)
    encoded = encode(read([{"messages": TALK}]), made)
    whole = made.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    mask = np.zeros(len(whole), int)
    for n, message in enumerate(TALK):
        if message["role"] == "assistant":
            start, end = (
                len(made.apply_chat_template(part, return_dict=True, **options)["input_ids"])
                for part, options in (
                    (TALK[:n], {"add_generation_prompt": True}),
                    (TALK[: n + 1], {}),
                )
            )
            mask[start:end] = 1
    assert encoded.tokens.ids[0, : len(whole)].tolist() == whole
    assert encoded.tokens.types[0, : len(whole)].tolist() == mask.tolist()
    assert learned_texts(encoded, made) == ["hello</s>\n", "ciao</s>\n"]


def test_conversation_of_one_question_equals_an_instruction():
    for template, name in ((PLAIN_CHATML, "auto"), (None, "auto"), (None, "plain"), (None, "raw")):
        made = tokenizer(template)
        data = read([{"messages": OTHER}], format=name)
        with open("i.jsonl", "w") as file:
            file.write('{"instruction": "a", "completion": "b"}\n')
        other = load(f"instructions(train='i.jsonl', test='i.jsonl', format='{name}')")
        one, two = encode(data, made).tokens, encode(other, made).tokens
        assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True)), name


def test_message_weights_override_the_marks_of_a_template():
    made = tokenizer(MARKED)
    first_off = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]
    encoded = encode(read([{"messages": first_off}]), made)
    assert learned_texts(encoded, made) == ["ciao</s>\n"]


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think>"
    "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Removes what was thought in earlier answers, as Qwen3's template."""

REWRITING = {
    "thought": THINKING,
    "counts turns": "{{ messages | length // 2 }}:" + PLAIN_CHATML,
    "last question": PLAIN_CHATML.replace(
        "{{ m.content + eos_token }}{% endif %}",
        "{% if m.role == 'user' and loop.index > messages | length - 2 %}NOW{% endif %}"
        "{{ m.content + eos_token }}{% endif %}",
    ),
    "asks otherwise": PLAIN_CHATML.replace(
        "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<go>"
    ),
}


@pytest.mark.parametrize("template", REWRITING.values(), ids=REWRITING)
def test_answers_follow_the_generation_prompts_of_transformers(template):
    """Also where a chat template writes earlier turns otherwise once there are later ones."""
    made = tokenizer(template)
    encoded = encode(read([{"messages": OTHER}, {"messages": TALK}]), made)
    assert encoded.index.tolist() == [0, 1, 1]
    assert encoded.split.pairs == ["b", "hello", "ciao"]
    for row, turns in enumerate((OTHER, TALK[:3], TALK)):
        start = instruction_tokens.prompt_length(encoded.tokens)[row]
        ids = encoded.tokens.ids[row, : encoded.tokens.length[row]]
        prompt = made.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        assert "".join(made.convert_ids_to_tokens(ids[:start])) == prompt
        whole = made.apply_chat_template(turns, tokenize=False)
        (answer,) = learned_texts(encoded, made, row)
        assert whole.endswith(answer) and turns[-1]["content"] in answer
        assert not whole.startswith(prompt) or prompt + answer == whole


def test_a_new_row_begins_where_the_template_rewrites_earlier_turns():
    """Thoughts are removed once there is a further question, as Qwen3's template does it."""
    twice = [*TALK[:3], {"role": "assistant", "content": "again"}, *TALK[3:]]
    one_question = "messages | selectattr('role', 'eq', 'user') | list | length == 1"
    made = tokenizer(THINKING.replace("loop.last", one_question))
    encoded = encode(read([{"messages": twice}]), made)
    assert encoded.index.tolist() == [0, 0]
    assert learned_texts(encoded, made, 0) == ["<think>hello", "<think>again"]
    assert learned_texts(encoded, made, 1) == ["ciao"]


def test_scored_answer_is_the_last_one_before_truncation():
    """A generated answer was compared with that of a turn which was cut off."""
    for template in (PLAIN_CHATML, MARKED, None):
        made = tokenizer(template)
        whole = encode(read([{"messages": TALK}]), made)
        assert whole.split.pairs == ["ciao"]
        start = instruction_tokens.prompt_length(whole.tokens)[0]
        cut = encode(read([{"messages": TALK}]), made, max_length=int(start))
        assert cut.split.pairs == ["hello"]


def test_template_without_answers_is_refused():
    made = tokenizer("{% for m in messages %}{{ m.role }}{% endfor %}x")
    with pytest.raises(InputError, match=r"does not put an answer after a prompt .*'be kind'"):
        encode(read([{"messages": TALK}]), made)


def test_template_without_system_turns_is_refused_with_the_row():
    made = tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(InputError, match=r"System role not supported.*begins 'be kind'"):
        encode(read([{"messages": TALK}]), made)


@pytest.mark.parametrize(
    ("format", "whole"),
    [
        ("plain", "<s>be kind\nhi\nhello</s>bye\nciao</s>"),
        ("raw", "<s>be kindhihello</s>byeciao</s>"),
        (
            "alpaca",
            "<s>be kind\n\n### Instruction:\nhi\n\n### Response:\nhello</s>"
            "### Instruction:\nbye\n\n### Response:\nciao</s>",
        ),
    ],
)
def test_without_a_template_each_answer_is_followed_by_the_end_of_text(format, whole):
    made = tokenizer()
    encoded = encode(read([{"messages": TALK}], format=format), made)
    ids = encoded.tokens.ids[0, : encoded.tokens.length[0]]
    assert "".join(made.convert_ids_to_tokens(ids)) == whole
    assert learned_texts(encoded, made) == ["hello</s>", "ciao</s>"]


def test_long_conversations_are_truncated_and_skipped_if_no_answer_is_left():
    made = tokenizer()
    blank = [TALK[1], {"role": "assistant", "content": " "}]
    rows = [{"messages": talk} for talk in (TALK, OTHER, [TALK[1]], blank)]
    encoded = encode(read(rows, format="plain"), made, max_length=16)
    assert encoded.index.tolist() == [0, 1]
    assert learned_texts(encoded, made) == ["hell"]
    with pytest.raises(InputError, match="Not one of 1 conversations has an answer in its first 6"):
        encode(read([{"messages": TALK}], format="plain"), made, max_length=6)


def test_generation_starts_at_the_last_answer():
    made = tokenizer(PLAIN_CHATML)
    encoded = encode(read([{"messages": TALK}]), made)
    start = instruction_tokens.prompt_length(encoded.tokens)[0]
    prompt = "".join(made.convert_ids_to_tokens(encoded.tokens.ids[0, :start]))
    want = made.apply_chat_template(TALK[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == want


def test_token_cache_distinguishes_learned_turns_and_templates(tmp_path):
    made, data = tokenizer(PLAIN_CHATML), read([{"messages": TALK}])
    options = {"max_length": 400, "cache_dir": tmp_path / "cache"}
    first = conversation_tokens.encode(data.train, made, format="chat", **options)
    again = conversation_tokens.encode(data.train, made, format="chat", **options)
    assert np.array_equal(first.tokens.types, again.tokens.types)
    last = read([{"messages": TALK}], learn="last")
    other = conversation_tokens.encode(last.train, made, format="chat", **options)
    assert other.tokens.types.sum() < first.tokens.types.sum()
    made.chat_template = PLAIN_CHATML.replace("<|", "<<|")
    changed = conversation_tokens.encode(data.train, made, format="chat", **options)
    assert changed.tokens.length[0] > first.tokens.length[0]
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.shared
def test_real_chat_template_and_tokenizer_mark_the_answers(shared):
    """Ids are those of the whole conversation; learned are the answers and their ends."""
    made = AutoTokenizer.from_pretrained(shared / "models" / "qwen2.5-0.5b-instruct")
    encoded = encode(read([{"messages": TALK}], format="chat"), made)
    ids = encoded.tokens.ids[0, : encoded.tokens.length[0]].tolist()
    assert ids == made.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    learned = np.array(ids)[encoded.tokens.types[0, : len(ids)] > 0]
    end = prompts.answer_end("chat", made).ids[-1]
    assert (learned == end).sum() == 2
    text = made.decode(learned, skip_special_tokens=True)
    assert "".join(text.split()) == "hellociao"


# -------------------------------------------------------------------------------------- plain texts


def text_rows(data, made, max_length):
    encoded = encode(data, made, max_length=max_length)
    rows = [
        "".join(made.convert_ids_to_tokens(ids[:size]))
        for ids, size in zip(encoded.tokens.ids, encoded.tokens.length, strict=True)
    ]
    return encoded, rows


def test_long_texts_continue_in_further_rows_and_every_token_is_predicted_once(folder):
    (folder / "a.txt").write_text("abcdefgh\n\nxy\n")
    made = tokenizer()
    data = load("text(train='a.txt', test='a.txt')")
    encoded, rows = text_rows(data, made, 5)
    assert rows == ["<s>abcd", "defgh", "h</s>", "<s>xy</s>"]
    assert encoded.index.tolist() == [0, 0, 0, 1]
    assert encoded.tokens.types[:, 0].tolist() == [0] * 4
    assert encoded.tokens.types.sum() == len("abcdefgh") + 1 + len("xy") + 1
    assert encoded.split.texts == ["abcdefgh"] * 3 + ["xy"]


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        ("line", ["one", "two\u2028x", "three"]),
        ("paragraph", ["one\ntwo\u2028x", "three"]),
        ("file", ["one\r\ntwo\u2028x\r\n\r\nthree"]),
    ],
)
def test_text_file_is_split_by_the_unit_option(folder, unit, texts):
    (folder / "a.txt").write_bytes("one\r\ntwo\u2028x\r\n\r\nthree".encode())
    assert load(f"text(train='a.txt', test='a.txt', unit='{unit}')").train.texts == texts


def test_texts_are_read_from_tables_and_one_file_per_client(folder):
    pd.DataFrame({"text": ["a", "b"], "who": ["x", "y"]}).to_csv(folder / "a.csv", index=False)
    data = load("text(train='a.csv', test='a.csv', group='who')")
    assert (data.train.texts, data.groups) == (["a", "b"], ("x", "y"))
    for name in "pq":
        (folder / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    data = load("text(train='[pq].txt', client_files=True)")
    assert data.groups == ("p", "q")
    with pytest.raises(InputError, match="has no columns; leave out group"):
        load("text(train='p.txt', group='who')")
    with pytest.raises(InputError, match="column 'text' is empty"):
        pd.DataFrame({"text": ["a", ""]}).to_csv(folder / "b.csv", index=False)
        load("text(train='b.csv')")


def test_turn_prompts_equal_instruction_prompts():
    question = Turn("user", "q", False)
    assert prompts.turns_prompt("alpaca", [question], first=True) == prompts.alpaca("q", "")
    assert prompts.turns_prompt("plain", [question], first=False) == prompts.plain("q", "")

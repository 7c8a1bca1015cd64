"""Config files in JSON, YAML and TOML: equal values, and no surprise of a format."""

import json

import pytest
import yaml

from fedjax_lora import InputError
from fedjax_lora.runs.config import load

YAML = """
seed: 3
data: {task: docstrings, train_examples: 200}
local:
  learning_rate: 1e-3     # PyYAML alone reads this as a string
  optimizer: adamw(weight_decay=0.01)
federation:
  method: hlora
  updates: ["clip(norm=1.0)"]
lora:
  lora_layers: [0, 2]
  alpha: null
"""

TOML = """
seed = 3
[data]
task = "docstrings"
train_examples = 200
[local]
learning_rate = 1e-3
optimizer = "adamw(weight_decay=0.01)"
[federation]
method = "hlora"
updates = ["clip(norm=1.0)"]
[lora]
lora_layers = [0, 2]
"""

JSON = """{"seed": 3, "data": {"task": "docstrings", "train_examples": 200},
"local": {"learning_rate": 1e-3, "optimizer": "adamw(weight_decay=0.01)"},
"federation": {"method": "hlora", "updates": ["clip(norm=1.0)"]},
"lora": {"lora_layers": [0, 2], "alpha": null}}"""


def write(folder, name: str, text: str):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.YAML", "a.toml"])
def test_all_formats_give_the_same_config(tmp_path, name):
    text = TOML if name.endswith("toml") else YAML
    config = load(write(tmp_path, name, text))
    assert config == load(write(tmp_path, "a.json", JSON))
    assert config.local.learning_rate == 1e-3 and config.lora.lora_layers == (0, 2)


def test_yaml_of_pyyaml_is_read_back(tmp_path):
    path = write(tmp_path, "a.yaml", yaml.safe_dump(json.loads(JSON)))
    assert load(path) == load(write(tmp_path, "a.json", JSON))


@pytest.mark.parametrize(
    ("scalar", "words"),
    [
        ("no", "cannot be 'no'"),  # a boolean of YAML 1.1
        ("1:30", "cannot be '1:30'"),  # ninety in YAML 1.1
        ("2024-07-26", "cannot be '2024-07-26'"),
        ("0x10", "cannot be '0x10'"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_plain_scalars_of_yaml_are_not_reinterpreted(tmp_path, scalar, words):
    path = write(tmp_path, "a.yaml", f"federation: {{rounds: {scalar}}}")
    with pytest.raises(InputError) as error:
        load(path)
    assert words in str(error.value)


def test_yaml_numbers_with_leading_zeros_are_decimal(tmp_path):
    assert load(write(tmp_path, "a.yaml", "federation: {rounds: 010}")).federation.rounds == 10


def test_yaml_dates_are_strings(tmp_path):
    config = load(write(tmp_path, "a.yaml", "data: {chat_date: 2025-01-02}"))
    assert config.data.chat_date == "2025-01-02"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.json", '{"local": {"batch": 1, "batch": 2}}', "'batch' is given twice"),
        ("a.toml", "seed = 1\nseed = 2\n", "is not TOML"),
        ("a.yaml", "a: [1, 2", "line 1"),
        ("a.yaml", "a: &x 1\nb: *x\n", "aliases are not read"),
        ("a.yaml", "? [1, 2]\n: 3\n", "is not a string"),
        ("a.yaml", "1: 2\n", "key 1 is not a string"),
        ("a.yaml", "- 1\n", "must map names"),
        ("a.yaml", "", "must map names"),
        ("a.yaml", "seed: 1\n---\nseed: 2\n", "is not YAML"),
        ("a.yaml", "<<: {seed: 1}\n", "config field '<<'"),
        ("a.yaml", "sed: 1", "did you mean 'seed'"),
        ("a.toml", "seed = 1\n[data", "is not TOML"),
        ("a.toml", "[data]\nchat_date = 2024-07-26", "chat_date"),
        ("a.yaml", "[" * 3000, "is not YAML"),
        ("a.yaml", "#" * 2_000_000, "more than"),
    ],
)
def test_files_that_are_not_configs_are_refused_in_one_sentence(tmp_path, name, text, words):
    with pytest.raises(InputError) as error:
        load(write(tmp_path, name, text))
    assert words in str(error.value) and "\n" not in str(error.value)

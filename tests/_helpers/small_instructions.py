"""A random decoder that generates letters, and instructions of three clients, for runs in tests."""

import json
import pathlib
import string

import numpy as np

from fedjax_lora.runs import config
from tests._helpers import small_decoders as decoders
from tests._helpers.character_tokenizer import SIZE, make_tokenizer

SPEC = (
    "instructions(train='train.jsonl', test='test.jsonl', instruction='say', completion='said', "
    "category='kind', group='who', format='plain', answer_tokens=6"
)


def fill(folder: pathlib.Path) -> pathlib.Path:
    """Write the checkpoint ``llama``, with its tokenizer, and both files of instructions."""
    checkpoint, _ = decoders.saved(
        folder, "llama", vocab_size=SIZE, max_position_embeddings=32, num_hidden_layers=1
    )
    make_tokenizer().save_pretrained(checkpoint)
    rng = np.random.default_rng(0)

    def rows(count):
        for n in range(count):
            word = "".join(rng.choice([*string.ascii_lowercase], rng.integers(1, 9)))
            yield {"say": word, "said": word[:4], "kind": "ab"[n % 2], "who": f"p{n % 3}"}

    for name, count in (("train", 40), ("test", 14)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(count))))
    return folder


def make(
    folder, *, method="flora", task=SPEC + ")", weights="examples", storage="float32", **local
):
    """A run of two rounds with three clients of ranks 1, 2 and 3."""
    return config.RunConfig(
        data=config.DataConfig(
            task=task, data_dir=str(folder), validation_examples=8, max_length=18
        ),
        model=config.ModelConfig(model=str(folder / "llama"), storage=storage),
        federation=config.FederationConfig(
            method=method, clients=3, cohort=3, rounds=2, partition="natural",
            ranks="fixed(rank=2)" if method == "fedsa_lora" else "tiers(ranks=[1, 2, 3])",
            client_weights=weights,
        ),
        local=config.LocalConfig(**({"batch": 2, "max_steps": 3, "learning_rate": 3e-3} | local)),
    )  # fmt: skip

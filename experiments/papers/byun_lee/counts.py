"""The paper's parameter counts, from DistilBERT's shape."""

import jax

from experiments.papers.byun_lee import HIGH, LOW, PROJECTIONS, SHARE
from fedjax_lora import lora, models
from fedjax_lora.lora import LoraSpec
from fedjax_lora.models import EncoderConfig

DISTILBERT = EncoderConfig(
    family="distilbert",
    vocab_size=30522,
    embedding_size=768,
    hidden=768,
    layers=6,
    heads=12,
    intermediate=3072,
    max_positions=512,
    type_vocab=0,
    pad_token_id=0,
)
PUBLISHED = {5: 138_240, 7: 193_536, 20: 552_960}


def spec(config: EncoderConfig = DISTILBERT, targets: str = PROJECTIONS) -> LoraSpec:
    """The adapters of rank 20; the model's shapes are all that is computed."""
    params = jax.eval_shape(lambda key: models.random_params(config, key), jax.random.key(0))
    base = {name: part for name, part in params.items() if name != "head"}
    return lora.make_spec(base, targets=targets, rank=HIGH)


def count(rank: int) -> int:
    """Trainable numbers of a client."""
    return lora.parameter_count(spec(), rank)


def mean_count() -> float:
    """Trainable numbers of the mean client."""
    return (1 - SHARE) * count(LOW) + SHARE * count(HIGH)

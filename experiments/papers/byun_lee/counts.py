"""The paper's parameter counts, computed from DistilBERT's shapes."""

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
    """Return the adapters of rank 20; only shapes are computed."""
    params = jax.eval_shape(lambda key: models.random_params(config, key), jax.random.key(0))
    base = {name: part for name, part in params.items() if name != "head"}
    return lora.make_spec(base, targets=targets, rank=HIGH)


def count(rank: int) -> int:
    """Number of trained parameters of a client."""
    return lora.parameter_count(spec(), rank)


def mean_count() -> float:
    """Mean number of trained parameters over the clients."""
    return (1 - SHARE) * count(LOW) + SHARE * count(HIGH)

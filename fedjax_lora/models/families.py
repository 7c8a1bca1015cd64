"""Properties of the supported encoder families.

The modules in `encoder` and `heads` are written once and look up the properties of a family here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Family(NamedTuple):
    """Properties of one encoder family.

    Attributes:
      prefix: prefix of the base model's tensors in a Hugging Face classification checkpoint.
      head: the classification head, a key of `heads.HEADS`.
      pooler: the base model has a tanh layer on the first token.
      token_types: the embeddings add a row for the segment of each token.
      factorised: token embeddings have their own width and a projection to the hidden width.
      square_projection: also if both widths are the same.
      shared_layers: one set of layer parameters serves every layer.
      relative_positions: attention adds a learned bias by the distance of two tokens (arXiv
        1910.10683), the same in all layers.
      disentangled: attention has terms of content and distance in place of position embeddings
        (arXiv 2006.03654), with keys and queries of distances by the projections of the content.
      padded_positions: positions count the tokens that are not padding, from ``pad_token_id + 1``.
      attention_output_dropout: dropout on the residual branch of the attention block.
      feed_forward_dropout: dropout on the residual branch of the feed-forward block.
    """

    prefix: str
    head: str = "linear"
    pooler: bool = False
    token_types: bool = True
    factorised: bool = False
    square_projection: bool = False
    shared_layers: bool = False
    relative_positions: bool = False
    disentangled: bool = False
    padded_positions: bool = False
    attention_output_dropout: bool = True
    feed_forward_dropout: bool = True


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "albert": Family(
            "albert",
            pooler=True,
            factorised=True,
            square_projection=True,
            shared_layers=True,
            feed_forward_dropout=False,
        ),
        "bert": Family("bert", pooler=True),
        "camembert": Family("roberta", head="dense_tanh", padded_positions=True),
        "deberta-v2": Family("deberta", head="context", disentangled=True),
        "distilbert": Family(
            "distilbert", head="pre_classifier", token_types=False, attention_output_dropout=False
        ),
        "electra": Family("electra", head="dense_gelu", factorised=True),
        "mpnet": Family(
            "mpnet",
            head="dense_tanh",
            token_types=False,
            relative_positions=True,
            padded_positions=True,
        ),
        "roberta": Family("roberta", head="dense_tanh", padded_positions=True),
        "xlm-roberta": Family("roberta", head="dense_tanh", padded_positions=True),
    }
)

"""The module that a config describes."""

from fedjax_lora.models.causal_lm import DecoderClassifier, LanguageModel
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.heads import SequenceClassifier

Config = EncoderConfig | DecoderConfig
Module = SequenceClassifier | DecoderClassifier | LanguageModel


def module_of(config: Config) -> Module:
    """Make the classifier of an encoder or decoder, or a language model if there are no labels."""
    if isinstance(config, EncoderConfig):
        return SequenceClassifier(config)
    return DecoderClassifier(config) if config.num_labels else LanguageModel(config)


def supports_unpadding(module: Module) -> bool:
    """Whether the module takes ``at``, the indices of tokens without padding; see `Encoder`."""
    return isinstance(module, SequenceClassifier)

"""The module that a config describes."""

from fedjax_lora.models.causal_lm import DecoderClassifier, LanguageModel, ModernClassifier
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.heads import SequenceClassifier

Config = EncoderConfig | DecoderConfig
Module = SequenceClassifier | ModernClassifier | DecoderClassifier | LanguageModel


def is_encoder(config: Config) -> bool:
    """Whether the model of a config reads texts, and does not write any."""
    return isinstance(config, EncoderConfig) or not config.causal


def module_of(config: Config) -> Module:
    """Make the classifier of an encoder or decoder, or a language model if there are no labels."""
    if isinstance(config, EncoderConfig):
        return SequenceClassifier(config)
    if not config.causal:
        return ModernClassifier(config)
    return DecoderClassifier(config) if config.num_labels else LanguageModel(config)


def supports_unpadding(module: Module) -> bool:
    """Whether the module takes ``at``, the indices of tokens without padding; see `Encoder`."""
    return isinstance(module, SequenceClassifier)

"""Federated LoRA fine-tuning with clients of different ranks, in JAX."""

__version__ = "0.1.0"

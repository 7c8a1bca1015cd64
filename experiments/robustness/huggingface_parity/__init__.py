"""Differences between the logits of exported models in PyTorch and in JAX."""

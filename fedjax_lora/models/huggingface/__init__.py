"""Hugging Face checkpoints: configurations, tensors, tokenizers and where to find them."""

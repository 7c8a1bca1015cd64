"""Robustness: attackers, interruptions, malformed input and parity with Hugging Face models."""

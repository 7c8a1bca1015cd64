"""Adapters on a model of your own: a Flax module and a loss that this library knows nothing of."""

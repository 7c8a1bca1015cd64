"""Names in a run folder that are needed where JAX is not loaded."""

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
ADAPTER, MERGED = "adapter", "merged"

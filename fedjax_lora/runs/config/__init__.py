"""The options of a run as frozen dataclasses, checked on creation, and their JSON form.

The options that choose code (``method``, ``ranks``, ``partition``, ``updates``,
``faults``, ``server_optimizer``, ``optimizer``, ``schedule``) are strings that read like calls, see
`fedjax_lora.core.registry`.
"""

from fedjax_lora.runs.config.io import (
    RENAMED,
    VERSION,
    differing_fields,
    from_dict,
    from_record,
    load,
    to_dict,
    to_record,
)
from fedjax_lora.runs.config.schema import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    chat_demo,
    demo,
)

__all__ = [
    "RENAMED",
    "VERSION",
    "DataConfig",
    "ExecutionConfig",
    "FederationConfig",
    "LocalConfig",
    "LoraConfig",
    "ModelConfig",
    "RunConfig",
    "chat_demo",
    "demo",
    "differing_fields",
    "from_dict",
    "from_record",
    "load",
    "to_dict",
    "to_record",
]

"""Configs of older versions: options of methods whose defaults have changed since.

Such an option is written into the method of a config that an older version has recorded, so that
a run goes on, and a result is found and named, as what it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.config.schema import RunConfig

FORMER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "fedrora": {"largest": "signed", "first": 0.0},
    "fslora": {"indices": "global"},
    "lora_fair": {"penalty": 0.01, "relative": False},
}
"""Options of methods with the defaults that they had before version 0.3."""


def pin_defaults(config: RunConfig) -> RunConfig:
    """Write the former defaults of the method into a config of a version before 0.3."""
    try:
        name, options = registry.parse(config.federation.method, "method")
    except InputError:
        return config
    former = FORMER_DEFAULTS.get(name, {})
    if not former.keys() - options.keys():
        return config
    words = ", ".join(f"{key}={value!r}" for key, value in {**options, **former, **options}.items())
    federation = dataclasses.replace(config.federation, method=f"{name}({words})")
    return dataclasses.replace(config, federation=federation)

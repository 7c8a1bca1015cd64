"""Compilation events of JAX."""

import re
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
PREPARED = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
HIT = "/jax/compilation_cache/cache_hits"


class Compiler:
    """Records compilation events from its creation to the end of the process.

    Attributes:
      programs: name, seconds and whether the program was in the persistent cache, in order.
      traced: seconds spent on tracing and lowering, by the name of the function.
    """

    def __init__(self) -> None:
        self.programs: list[dict[str, Any]] = []
        self.traced: dict[str, float] = {}
        self._hit = False
        jax.monitoring.register_event_listener(self._event)
        jax.monitoring.register_event_duration_secs_listener(self._duration)

    def _event(self, event: str, **about: str | int) -> None:
        self._hit = self._hit or event == HIT

    def _duration(self, event: str, duration_secs: float, **about: str | int) -> None:
        name = str(about.get("fun_name"))
        if event == COMPILED:
            self.programs.append({"name": name, "seconds": duration_secs, "cached": self._hit})
            self._hit = False
        elif event in PREPARED:
            self.traced[name] = self.traced.get(name, 0.0) + duration_secs


def branches(program: str) -> int:
    """Count the branches of the largest switch in a program given as HLO text."""
    found = re.findall(r"branch_computations=\{([^}]*)\}", program)
    return max((len(names.split(",")) for names in found), default=0)

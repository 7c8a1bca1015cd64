"""Time as it passes for clients: device profiles, the clock of a round, deadlines, servers.

>>> from fedjax_lora.federated import clock
>>> devices = clock.classes(names=["jetson-nano", "laptop-m1"])(4, 0)
>>> (devices.memory / 1e9).tolist()
[4.0, 8.0, 8.0, 4.0]
"""

from fedjax_lora.federated.clock.clock import Clock, Timing, Work
from fedjax_lora.federated.clock.deadlines import DEADLINES, Deadline, after, first
from fedjax_lora.federated.clock.devices import (
    DEVICE_CLASSES,
    DEVICE_PROFILES,
    DeviceClass,
    DeviceMix,
    Devices,
    classes,
    file,
)
from fedjax_lora.federated.clock.events import Answered, Events, Job
from fedjax_lora.federated.clock.servers import (
    SERVERS,
    Server,
    fedasync,
    fedbuff,
    semi_synchronous,
    synchronous,
)

__all__ = [
    "DEADLINES",
    "DEVICE_CLASSES",
    "DEVICE_PROFILES",
    "SERVERS",
    "Answered",
    "Clock",
    "Deadline",
    "DeviceClass",
    "DeviceMix",
    "Devices",
    "Events",
    "Job",
    "Server",
    "Timing",
    "Work",
    "after",
    "classes",
    "fedasync",
    "fedbuff",
    "file",
    "first",
    "semi_synchronous",
    "synchronous",
]

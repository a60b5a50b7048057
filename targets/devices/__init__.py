"""The devices that a target can name: one file each."""

from pipnet_edge.targets.devices.file import (
    CORE_TYPES,
    FOLDER,
    Anchor,
    Cores,
    CoreType,
    Device,
    Setting,
    device,
    devices,
    read_device,
)

__all__ = [
    "CORE_TYPES",
    "FOLDER",
    "Anchor",
    "CoreType",
    "Cores",
    "Device",
    "Setting",
    "device",
    "devices",
    "read_device",
]

"""Tango class of the module synchronizer."""

from typing import Any, Final, cast

import numpy as np
from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.base import PUSHED, StageDevice, counter_attributes, serve
from tango_stddaq.stages.module_sync import ModuleSync

MAX_PACKETS: Final = 4096


class StdDaqModuleSync(StageDevice):
    """Joins the frames of all modules to images and publishes them; owns the image ring."""

    stage_type = ModuleSync

    IdleTimeout = device_property(
        dtype=float,
        default_value=1.0,
        doc="Seconds without frames after which incomplete images go on as they are.",
    )

    locals().update(counter_attributes(ModuleSync.counters_spec))

    def make_stage(self, config: DaqConfig) -> ModuleSync:
        return ModuleSync(config, self.IdleTimeout)

    @attribute(
        dtype="DevLong64", label="last incomplete id", **PUSHED,
        doc="Image id of the last image that went on with packets missing; -1 before the first.",
    )  # fmt: skip
    def lastIncompleteId(self) -> int:
        return -1 if self._stage is None else self._sync().last_incomplete_id

    @attribute(
        dtype=(("DevUChar",),),
        max_dim_x=MAX_PACKETS,
        max_dim_y=1024,
        label="packet mask",
        doc="Packets of lastIncompleteId: a row a module, a column a packet, 1 where it is missing.",
    )
    def packetMask(self) -> np.ndarray:
        if self._stage is None:
            return np.zeros((1, 1), np.uint8)
        return self._sync().last_missing_packets.astype(np.uint8)

    def watched(self) -> dict[str, Any]:
        """Add what is not a counter."""
        last = -1 if self._stage is None else self._sync().last_incomplete_id
        return {**super().watched(), "lastIncompleteId": last}

    def _sync(self) -> ModuleSync:
        return cast(ModuleSync, self.stage)


def main() -> None:
    """Run the device server."""
    serve(StdDaqModuleSync)


if __name__ == "__main__":
    main()

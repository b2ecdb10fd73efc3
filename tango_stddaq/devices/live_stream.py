"""Tango class of a live stream."""

from typing import Any, Final, cast

import numpy as np
from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig, live_stream_rule
from tango_stddaq.devices.base import PREVIEW_SIDE, PUSHED, StageDevice, counter_attributes, serve
from tango_stddaq.stages.live_stream import LiveStream

MAX_CLIENTS_SHOWN: Final = 256


class StdDaqLiveStream(StageDevice):
    """Sends images to any number of clients over TCP, and shows a small preview of them."""

    stage_type = LiveStream

    Address = device_property(
        dtype=str,
        default_value="",
        doc="ZeroMQ address to bind: a key of live_stream_configs, or any tcp://HOST:PORT.",
    )
    MetadataSuffix = device_property(
        dtype=str, default_value="image", doc="Stream that announces the images."
    )
    ImageSuffix = device_property(dtype=str, default_value="image", doc="Ring with their pixels.")

    Protocol = device_property(
        dtype=str, default_value="array-1.0", doc="What clients speak: array-1.0 or bsread."
    )
    Compression = device_property(
        dtype=str, default_value="none", doc="How bsread sends pixels: none or bitshuffle_lz4."
    )
    Mode = device_property(
        dtype=str,
        default_value="",
        doc="Which images are sent: forward, batch or periodic. Empty: what live_stream_configs says.",
    )
    ModeNumbers = device_property(
        dtype=(float,), default_value=(), doc="[n, m] for batch, [n, hz] for periodic."
    )

    locals().update(counter_attributes(LiveStream.counters_spec))

    def make_stage(self, config: DaqConfig) -> LiveStream:
        return LiveStream(
            config,
            self.Address,
            self.MetadataSuffix,
            self.ImageSuffix,
            self.Protocol,
            self.Compression,
            live_stream_rule(self.Mode, self.ModeNumbers) if self.Mode else None,
        )

    def watched(self) -> dict[str, Any]:
        values = super().watched()
        if self._stage is not None:
            values["previewId"] = self._live_stream().preview_id
        return values

    def push_changes(self) -> None:
        preview_id = self._pushed.get("previewId")
        super().push_changes()
        if self._stage is not None and self._pushed.get("previewId") != preview_id:
            self.push_change_event("preview", self._live_stream().preview)

    @attribute(dtype=str, label="address", doc="Address that clients connect to.")
    def address(self) -> str:
        return self.Address if self._stage is None else self._live_stream().endpoint

    @attribute(dtype=str, label="protocol", doc="What clients speak, and how pixels are compressed.")
    def protocol(self) -> str:
        if self._stage is None:
            return str(self.Protocol)
        stage = self._live_stream()
        return f"{stage.protocol} {stage.compression}".removesuffix(" none")

    @attribute(
        dtype=str, label="mode", doc="Which images are sent, with the numbers of batch and periodic."
    )
    def mode(self) -> str:
        if self._stage is None:
            return str(self.Mode)
        rule = self._live_stream().rule
        return f"{rule.type} {list(rule.config)}" if rule.config else rule.type

    @attribute(
        dtype=(str,),
        max_dim_x=MAX_CLIENTS_SHOWN,
        label="clients",
        doc="Each client: its address, how many images it is behind, how many it lost.",
    )
    def clients(self) -> list[str]:
        return [] if self._stage is None else self._live_stream().clients[:MAX_CLIENTS_SHOWN]

    @attribute(
        dtype=(("DevFloat",),),
        max_dim_x=PREVIEW_SIDE,
        max_dim_y=PREVIEW_SIDE,
        unit="counts",
        label="preview",
        doc="The last image sent, shrunk: each pixel is the largest of its block.",
        **PUSHED,
    )
    def preview(self) -> np.ndarray:
        return np.zeros((1, 1), np.float32) if self._stage is None else self._live_stream().preview

    @attribute(
        dtype="DevLong64", label="preview id", doc="Image id of the preview; -1 before the first.",
        **PUSHED,
    )  # fmt: skip
    def previewId(self) -> int:
        return -1 if self._stage is None else self._live_stream().preview_id

    def _live_stream(self) -> LiveStream:
        return cast(LiveStream, self.stage)


def main() -> None:
    """Run the device server."""
    serve(StdDaqLiveStream)


if __name__ == "__main__":
    main()

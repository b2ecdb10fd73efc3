"""Tango class of the writer driver."""

import dataclasses
from typing import Any, cast

from tango.server import command, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.devices.acquisition_face import AcquisitionFace
from tango_stddaq.devices.base import StageDevice, counter_attributes, serve, tango_errors
from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.acquisition import DriverStatus
from tango_stddaq.stages.writer_driver import WriterDriver

_NOTHING = {
    "status": DriverStatus.IDLE,
    "busy": False,
    "progress": 0.0,
    "mean_rate_hz": 0.0,
    "ledger": {},
    "reason": "",
    "failed": False,
    "files": [],
    "master": "",
}


class StdDaqWriterDriver(StageDevice, AcquisitionFace):
    """Hands the images of an acquisition to the file writers and accounts for each of them."""

    stage_type = WriterDriver

    Suffix = device_property(
        dtype=str, default_value="image", doc="Metadata stream that announces the images."
    )
    OutputRoots = device_property(
        dtype=(str,), default_value=[], doc="Directories below which files may be written; none: any."
    )
    MetadataWriter = device_property(
        dtype=bool, default_value=False, doc="Whether a GigaFRoST metadata writer takes part."
    )

    locals().update(counter_attributes(WriterDriver.counters_spec))

    def init_device(self) -> None:
        """Initialise; see the base class."""
        self._request = Request("")
        super().init_device()

    def make_stage(self, config: DaqConfig) -> WriterDriver:
        roots = tuple(root for root in self.OutputRoots if root)
        return WriterDriver(config, self.Suffix, roots, self.MetadataWriter)

    def _driver(self) -> WriterDriver:
        return cast(WriterDriver, self.stage)

    def _outcome(self) -> dict[str, Any]:
        if self._stage is None:
            return _NOTHING
        driver = self._driver()
        return {
            "status": driver.acquisition_status,
            "busy": driver.busy,
            "progress": driver.progress,
            "mean_rate_hz": driver.mean_rate_hz,
            "ledger": driver.ledger.summary(),
            "reason": driver.reason,
            "failed": driver.failed,
            "files": driver.last_files,
            "master": driver.last_master,
        }

    def watched(self) -> dict[str, Any]:
        return {**super().watched(), **self.acquisition_values()}

    @command(doc_in="Create the files and record imageCount images.")
    @tango_errors
    def StartWriting(self) -> None:
        user = self._request.writer_user_id or self._driver().config.writer_user_id or 0
        self._driver().begin(dataclasses.replace(self._request, writer_user_id=user))
        self._forget_exceptions()

    @command(doc_in="End the acquisition; what was accepted is saved.")
    @tango_errors
    def StopWriting(self) -> None:
        self._driver().finish()

    @command(doc_in="End the acquisition and remove its files.")
    @tango_errors
    def AbortWriting(self) -> None:
        self._driver().abort()


def main() -> None:
    """Run the device server."""
    serve(StdDaqWriterDriver)


if __name__ == "__main__":
    main()

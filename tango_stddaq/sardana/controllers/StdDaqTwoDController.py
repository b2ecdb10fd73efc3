"""Sardana controller: each point of a scan is an acquisition, and refers to its master file."""

from datetime import datetime
from typing import Any

import tango
from sardana import DataAccess, State
from sardana.pool import AcqSynch
from sardana.pool.controller import (
    Access,
    DefaultValue,
    Description,
    FGet,
    FSet,
    Memorize,
    NotMemorized,
    Referable,
    TwoDController,
    Type,
)

from tango_stddaq.sardana.references import DEFAULT_PATTERN, Target, target_of

_TIMEOUT_MS = 10_000


class StdDaqTwoDController(TwoDController, Referable):
    """The images of one data acquisition.

    With references enabled each point takes `ImagesPerPoint` images to a file. Without, nothing is
    written: a point is over after the integration time, and its value is the last preview.
    """

    gender = "Detector"
    model = "tango_stddaq"
    organization = "tango_stddaq"
    MaxDevice = 1

    ctrl_properties = {
        "facade": {Type: str, Description: "Tango device of the facade, NAME/stddaq/facade."},
    }
    axis_attributes = {
        "ImagesPerPoint": {
            Type: int,
            FGet: "images_per_point",
            FSet: "set_images_per_point",
            Description: "Images of each point of a scan.",
            DefaultValue: 1,
            Access: DataAccess.ReadWrite,
            Memorize: NotMemorized,
        },
    }

    def __init__(self, inst: str, props: dict[str, Any], *arguments: Any, **more: Any) -> None:
        TwoDController.__init__(self, inst, props, *arguments, **more)
        self._proxy = tango.DeviceProxy(self.facade)
        self._proxy.set_timeout_millis(_TIMEOUT_MS)
        self._pattern = DEFAULT_PATTERN
        self._with_references = False
        self._n_images = 1
        self._index = -1
        self._begun = datetime.now()
        self._ends = datetime.now()
        self._integration_s = 0.0
        self._target: Target | None = None
        self._is_taking = False
        self._failure = ""

    def AddDevice(self, axis: int) -> None:
        """Nothing to make: there is one axis, the image."""

    def DeleteDevice(self, axis: int) -> None:
        """Nothing to remove."""

    # -- parameters --------------------------------------------------------------------------------

    def images_per_point(self, axis: int) -> int:
        """Return how many images a point has."""
        return self._n_images

    def set_images_per_point(self, axis: int, value: int) -> None:
        """Set how many images a point has."""
        if int(value) < 1:
            raise ValueError(f"ImagesPerPoint {value}: allowed is 1 or more")
        self._n_images = int(value)

    def SetAxisPar(self, axis: int, parameter: str, value: Any) -> None:
        """Take what Sardana sets of a referable channel."""
        if parameter == "value_ref_pattern":
            target_of(value or DEFAULT_PATTERN, 0, self._begun)  # a wrong one is said at once
            self._pattern = value or DEFAULT_PATTERN
        elif parameter == "value_ref_enabled":
            self._with_references = bool(value)

    def GetAxisPar(self, axis: int, parameter: str) -> Any:
        """Return the shape of a value, (width, height) of the preview."""
        if parameter == "shape":
            height, width = self._proxy.read_attribute("preview").value.shape
            return [width, height]
        return None

    # -- a scan ------------------------------------------------------------------------------------

    def PrepareOne(self, axis: int, value: float, repetitions: int, latency: float, starts: int) -> None:
        """Begin a scan."""
        if self._synchronization != AcqSynch.SoftwareTrigger:
            raise ValueError("only software triggers are supported: choose Trigger and software")
        self._index = -1
        self._failure = ""
        self._begun = datetime.now()

    def LoadOne(self, axis: int, integration_s: float, repetitions: int, latency: float) -> None:
        """Take the time of a point."""
        self._integration_s = float(integration_s)
        self._repetitions = int(repetitions)

    def PreStartAll(self) -> None:
        """Go to the next point."""
        self._index += 1

    def StartOne(self, axis: int, value: float) -> None:
        """Begin a point.

        What the facade refuses becomes the state of the channel. Sardana forgets the text of an error
        that is raised here, and then tells the user that the channel is in fault, but not why.
        """
        self._failure = ""
        self._ends = datetime.now()
        self._target = None
        self._is_taking = True
        if not self._with_references:
            return
        target = target_of(self._pattern, self._index, self._begun)
        try:
            self._proxy.write_attributes(
                [
                    ("outputPath", target.directory),
                    ("filePrefix", f"{target.name.removesuffix('.h5')}_"),
                    ("masterName", target.name),
                    ("imageCount", self._n_images * self._repetitions),
                    ("startId", 0),
                ]
            )
            self._proxy.command_inout("Start")
        except tango.DevFailed as error:
            self._is_taking = False
            self._failure = f"{self.facade}: {error.args[0].desc}"
            return
        self._target = target

    def StateOne(self, axis: int) -> tuple[Any, str]:
        """Return whether the point is over."""
        if not self._is_taking:
            return (State.Fault, self._failure) if self._failure else (State.On, "Ready")
        if self._target is None:
            taken_s = (datetime.now() - self._ends).total_seconds()
            if taken_s < self._integration_s * self._repetitions:
                return State.Moving, "Looking"
            self._is_taking = False
            return State.On, "Ready"
        names = ["acquiring", "failed", "endReason", "imagesComplete", "imagesIncomplete"]
        busy, failed, reason, complete, incomplete = (
            reply.value for reply in self._proxy.read_attributes(names)
        )
        if busy:
            return State.Moving, f"{complete + incomplete} images taken"
        self._is_taking = False
        if failed or not complete + incomplete:
            self._failure = f"{self.facade}: {reason}"
            return State.Fault, self._failure
        return State.On, reason

    def ReadOne(self, axis: int) -> Any:
        """Return the preview of the last image, float32 (height, width)."""
        return self._proxy.read_attribute("preview").value

    def RefOne(self, axis: int) -> str | None:
        """Return the reference of the point."""
        return None if self._target is None else self._target.reference

    def AbortOne(self, axis: int) -> None:
        """Abort the point: its files are removed."""
        if self._is_taking and self._target is not None:
            self._proxy.command_inout("Abort")
        self._is_taking = False

"""Sardana macros: take images, and say how the data acquisition is doing.

The facade is the only one in the database, or the one that the environment variable StdDaqFacade names:
`senv StdDaqFacade EIGER1/stddaq/facade`.
"""

import json
import time
from typing import Any

import tango
from sardana.macroserver.macro import Macro, Type

_PERIOD_S = 0.2


def facade_of(macro: Any) -> tango.DeviceProxy:
    """Return the facade that a macro shall use.

    Raises
    ------
    RuntimeError
        If there is none, or more than one.
    """
    found = macro.getEnv("StdDaqFacade") if "StdDaqFacade" in macro.getAllEnv() else ""
    if not found:
        names = list(tango.Database().get_device_exported("*/stddaq/facade"))
        if len(names) != 1:
            raise RuntimeError(
                f"{len(names)} facades in the database: {', '.join(names) or 'start the system'}; "
                "choose one: senv StdDaqFacade NAME"
            )
        found = names[0]
    proxy = tango.DeviceProxy(found)
    proxy.set_timeout_millis(10_000)
    return proxy


class stddaq_acquire(Macro):
    """Take images to files, and wait until they are closed and checked.

    Stopping the macro (Ctrl-C) ends the acquisition and saves what came; aborting it removes the files.
    """

    param_def = [
        ["n_images", Type.Integer, None, "Images to take"],
        ["directory", Type.String, None, "Existing directory on the server"],
        ["prefix", Type.String, "run_", "First part of the file names"],
    ]
    result_def = [["master", Type.String, None, "File that joins the others"]]

    def run(self, n_images: int, directory: str, prefix: str) -> str:
        """Take the images; returns the master file."""
        self._daq = daq = facade_of(self)
        try:
            daq.write_attributes(
                [("outputPath", directory), ("filePrefix", prefix), ("imageCount", n_images)]
            )
            daq.command_inout("Start")
        except tango.DevFailed as error:
            raise RuntimeError(error.args[0].desc) from None
        while daq.read_attribute("acquiring").value:
            self.checkPoint()
            time.sleep(_PERIOD_S)
        ledger = json.loads(daq.read_attribute("ledger").value)
        reason, master = daq.read_attribute("endReason").value, daq.read_attribute("lastFile").value
        counts = ", ".join(f"{name} {ledger[name]}" for name in ("complete", "incomplete", "lost"))
        self.output(f"{reason}: {counts}")
        if daq.read_attribute("failed").value:
            raise RuntimeError(reason)
        self.output(master)
        return str(master)

    def on_stop(self) -> None:
        """Save what came."""
        self._daq.command_inout("Stop")

    def on_abort(self) -> None:
        """Remove the files."""
        self._daq.command_inout("Abort")


class stddaq_status(Macro):
    """Say how the data acquisition and its stages are doing."""

    def run(self) -> None:
        """Print state, ledger, rates and stages."""
        daq = facade_of(self)
        self.output(f"{daq.dev_name()}: {daq.state()}. {daq.status()}")
        ledger = json.loads(daq.read_attribute("ledger").value)
        for name in ("expected", "complete", "incomplete", "lost"):
            self.output(f"{name:>11}: {ledger.get(name, 0)}")
        for name in ("detectorRate", "imageRate"):
            self.output(f"{name:>12}: {daq.read_attribute(name).value:.1f} images/s")
        for line in daq.read_attribute("stageStates").value:
            self.output(line)

"""The demo: one acquisition of a simulated detector from start to a file one can look at."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import hdf5plugin  # noqa: F401, registers what reads compressed images
import numpy as np
import tango
from PIL import Image as PilImage
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from tango_stddaq.devices.system import System
from tango_stddaq.errors import StdDaqError
from tango_stddaq.io import processes
from tango_stddaq.io.log_output import rotate
from tango_stddaq.processing.preview import to_gray

_PATIENCE_S: Final = 5.0
"""So long without progress after the detector has sent everything: what is missing will not come."""
_SAVE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came out of it.

    Attributes
    ----------
    image_rate_hz, bytes_per_s
        Mean over the acquisition; bytes are pixels.
    """

    images: int
    complete: int
    incomplete: int
    lost: int
    incomplete_ids: list[int]
    files: list[str]
    master: str
    image_rate_hz: float
    bytes_per_s: float
    picture: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class Demo:
    """Runs one acquisition on a system and shows it.

    Parameters
    ----------
    console
        Where a person looks.
    output, prefix
        Directory and first part of the names of the files.
    config_path
        Configuration for the simulated detector.
    """

    def __init__(
        self, console: Console, system: System, output: Path, prefix: str, config_path: Path
    ) -> None:
        self._console = console
        self._system = system
        self._output = output
        self._prefix = prefix
        self._config_path = config_path
        self._sender_log = system.log_dir / "simulate.log"

    def run(self, n_images: int, rate_hz: float, drop_every: int) -> DemoResult:
        """Take the images; nothing is left running afterwards, whatever happens.

        Raises
        ------
        StdDaqError
            If the system does not start or the acquisition fails.
        """
        started = time.monotonic()
        with self._console.status("starting: the first time, code is compiled") as status:
            self._system.on_progress = lambda what: status.update(f"starting {what}")
            with self._system:
                status.stop()
                n_servers = len(self._system.plan.servers)
                self._console.print(
                    f"{n_servers} device servers and a Tango database up in "
                    f"{time.monotonic() - started:.1f} s"
                )
                result = self._acquire(n_images, rate_hz, drop_every)
        self._show(result)
        return result

    def _acquire(self, n_images: int, rate_hz: float, drop_every: int) -> DemoResult:
        daq = self._system.facade
        daq.outputPath = str(self._output)
        daq.filePrefix = self._prefix
        daq.imageCount = n_images
        daq.Start()
        command = [
            sys.executable, "-m", "tango_stddaq.cli.main", "simulate", str(self._config_path),
            "--images", str(n_images), "--rate", str(rate_hz), "--drop-every", str(drop_every),
        ]  # fmt: skip
        sender: subprocess.Popen[bytes] | None = None
        rotate(self._sender_log)
        try:
            with self._sender_log.open("wb") as log, processes.uninterrupted():
                sender = subprocess.Popen(
                    processes.leash_command(command),
                    env=processes.leash_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                )
            self._follow(daq, n_images, sender)
        except BaseException:
            self._discard(daq)
            raise
        finally:
            if sender is not None:
                sender.terminate()
                sender.wait(10)
        ledger = json.loads(daq.ledger)
        if not daq.lastFile:
            raise StdDaqError(f"the acquisition failed: {daq.endReason}")
        picture = self._save_picture(daq.lastFile)
        image_bytes = self._system.config.sizes.slot_bytes
        return DemoResult(
            images=n_images,
            complete=ledger["complete"],
            incomplete=ledger["incomplete"],
            lost=ledger["lost"],
            incomplete_ids=[int(image_id) for image_id in daq.incompleteImageIds],
            files=list(daq.writerFiles),
            master=daq.lastFile,
            image_rate_hz=round(daq.meanImageRate, 3),
            bytes_per_s=round(daq.meanImageRate * image_bytes),
            picture=str(picture),
        )

    def _discard(self, daq: tango.DeviceProxy) -> None:
        """Leave no half-made files behind when the user ends the demo, or something breaks."""
        self._console.print("stopping; the files of this run are removed")
        with suppress(tango.DevFailed):
            daq.Abort()
            deadline = time.monotonic() + _PATIENCE_S
            while daq.acquiring and time.monotonic() < deadline:
                time.sleep(0.05)

    def _follow(self, daq: tango.DeviceProxy, n_images: int, sender: subprocess.Popen[bytes]) -> None:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        seen, last_change_s, stopped = -1, time.monotonic(), False
        with bar:
            task = bar.add_task("taking images", total=n_images, rate="")
            while daq.acquiring:
                self._system.check_alive()
                if sender.poll():
                    said = " | ".join(self._sender_log.read_text(errors="replace").splitlines()[-2:])
                    raise StdDaqError(f"the simulator ended with code {sender.returncode}: {said}")
                expected = daq.imagesExpected
                rate = f"{daq.imageRate:.0f} images/s"
                bar.update(task, completed=expected, rate=rate, description=daq.acquisitionStatus)
                now = time.monotonic()
                if expected != seen:
                    seen, last_change_s = expected, now
                idle_s = now - last_change_s
                if sender.poll() is not None and idle_s > _PATIENCE_S and not stopped:
                    daq.Stop()
                    stopped = True
                if stopped and idle_s > _SAVE_TIMEOUT_S:
                    raise StdDaqError(f"the files are not closed: {daq.Status()}")
                time.sleep(0.05)
            bar.update(task, completed=daq.imagesExpected, description="saved")

    def _save_picture(self, master: str) -> Path:
        """Save the last image of the master file as PNG."""
        with h5py.File(master, "r") as file:
            images = file["entry/data/data"]
            if len(images) == 0:
                raise StdDaqError(f"{master}: holds no image")
            image: np.ndarray = images[-1]
        path = self._output / f"{self._prefix}last.png"
        PilImage.fromarray(to_gray(image)).save(path)
        return path

    def _show(self, result: DemoResult) -> None:
        table = Table(title="Ledger", title_justify="left")
        for name in ("images", "complete", "incomplete", "lost", "rate", "data"):
            table.add_column(name, justify="right")
        table.add_row(
            str(result.images),
            str(result.complete),
            str(result.incomplete),
            str(result.lost),
            f"{result.image_rate_hz:.1f} images/s",
            f"{result.bytes_per_s / 1e6:.0f} MB/s",
        )
        console = self._console
        console.print(table)
        lines = []
        if result.incomplete_ids:
            ids = ", ".join(str(image_id) for image_id in result.incomplete_ids[:20])
            more = ", ..." if len(result.incomplete_ids) > 20 else ""
            lines.append(f"Incomplete   {ids}{more}")
        lines.append(f"Master file  {_near(result.master)}")
        lines += [f"Writer file  {_near(path)}" for path in result.files]
        lines.append(f"Last image   {_near(result.picture)}")
        stddaq = _near(sys.argv[0])
        lines += [
            "Try next:",
            f"  {stddaq} demo --drop-every 1000   lose packets, and see which images they belong to",
            f"  {stddaq} demo --detector gigafrost   or jungfrau, or pco",
            f"  {stddaq} up {_near(str(self._config_path))}   keep the system for your own clients",
        ]
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)


def _near(path: str) -> str:
    """Return a path as one would type it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative

"""Attributes and commands of an acquisition, the same on the writer driver and on the facade."""

import json
from typing import Any

from tango.server import Device, attribute

from tango_stddaq.devices.base import PUSHED, READ_WRITE
from tango_stddaq.io.preflight import Request
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES

MAX_IDS = 100_000
MAX_FILES = 257


class AcquisitionFace(Device):
    """What a client sets before an acquisition, starts and stops it with, and reads of it.

    A subclass keeps `_request` (what is asked for) and says in `_outcome` what is known of the
    acquisition under way or the last one.
    """

    _request: Request

    def _outcome(self) -> dict[str, Any]:
        """Return status, progress, ledger (as `Ledger.summary`), reason, files, master."""
        raise NotImplementedError

    def _ledger_count(self, name: str) -> int:
        return int(self._outcome()["ledger"].get(name, 0))

    def _forget_exceptions(self) -> None:
        """Forget what is asked for once: it is not for the acquisitions after this one."""
        self._change(overwrite=False, master_name="", writer_user_id=0)

    def _change(self, **changes: Any) -> None:
        values = {name: getattr(self._request, name) for name in Request.__slots__}
        self._request = Request(**{**values, **changes})

    # -- what is asked for -------------------------------------------------------------------------

    @attribute(dtype=str, access=READ_WRITE, label="output path", doc="Existing directory of the files.")
    def outputPath(self) -> str:
        return self._request.path

    @outputPath.write
    def outputPath(self, value: str) -> None:
        self._change(path=value)

    @attribute(dtype=str, access=READ_WRITE, label="file prefix", doc="First part of the file names.")
    def filePrefix(self) -> str:
        return self._request.file_prefix

    @filePrefix.write
    def filePrefix(self, value: str) -> None:
        self._change(file_prefix=value)

    @attribute(
        dtype="DevULong64", access=READ_WRITE, unit="images", label="image count", min_value="1",
        doc=f"Images to take; {DEFAULT_N_IMAGES} means until stopped.",
    )  # fmt: skip
    def imageCount(self) -> int:
        return self._request.n_images

    @imageCount.write
    def imageCount(self, value: int) -> None:
        self._change(n_images=int(value))

    @attribute(
        dtype="DevULong64", access=READ_WRITE, label="start id",
        doc="Images with lower ids are left out.",
    )  # fmt: skip
    def startId(self) -> int:
        return self._request.start_id

    @startId.write
    def startId(self, value: int) -> None:
        self._change(start_id=int(value))

    @attribute(
        dtype=bool, access=READ_WRITE, label="overwrite",
        doc="Whether the next Start replaces files of the same names; false again after it.",
    )  # fmt: skip
    def overwrite(self) -> bool:
        return self._request.overwrite

    @overwrite.write
    def overwrite(self, value: bool) -> None:
        self._change(overwrite=bool(value))

    @attribute(
        dtype=str, access=READ_WRITE, label="master name",
        doc="Name of the next master file; empty, as after every Start: filePrefix and master.h5.",
    )  # fmt: skip
    def masterName(self) -> str:
        return self._request.master_name

    @masterName.write
    def masterName(self, value: str) -> None:
        self._change(master_name=value)

    @attribute(
        dtype="DevLong64", access=READ_WRITE, label="writer user id",
        doc="User who shall own the files of the next Start; 0, as after every Start: the "
        "configuration's writer_user_id.",
    )  # fmt: skip
    def writerUserId(self) -> int:
        return self._request.writer_user_id

    @writerUserId.write
    def writerUserId(self, value: int) -> None:
        self._change(writer_user_id=int(value))

    # -- what is known of it -----------------------------------------------------------------------

    @attribute(
        dtype=str, label="acquisition status", **PUSHED,
        doc="idle, creating_file, waiting_for_first_image, recording, saving_file, ...",
    )  # fmt: skip
    def acquisitionStatus(self) -> str:
        return str(self._outcome()["status"])

    @attribute(
        dtype=bool, label="acquiring", **PUSHED,
        doc="Whether an acquisition is under way; false once its files are closed and checked.",
    )  # fmt: skip
    def acquiring(self) -> bool:
        return bool(self._outcome()["busy"])

    @attribute(
        dtype=float, unit="%", format="%.1f", label="progress", **PUSHED,
        doc="Share of the images asked for that are accounted for.",
    )  # fmt: skip
    def progress(self) -> float:
        return 100.0 * float(self._outcome()["progress"])

    @attribute(
        dtype=float, unit="Hz", format="%.1f", label="mean image rate",
        doc="Images recorded per second from the first to the latest of the acquisition.",
    )  # fmt: skip
    def meanImageRate(self) -> float:
        return float(self._outcome()["mean_rate_hz"])

    @attribute(
        dtype="DevULong64", unit="images", label="expected", **PUSHED,
        doc="Images that belong to the acquisition so far: complete + incomplete + lost.",
    )  # fmt: skip
    def imagesExpected(self) -> int:
        return self._ledger_count("expected")

    @attribute(
        dtype="DevULong64", unit="images", label="complete", **PUSHED,
        doc="Images with all their packets.",
    )  # fmt: skip
    def imagesComplete(self) -> int:
        return self._ledger_count("complete")

    @attribute(
        dtype="DevULong64", unit="images", label="incomplete", **PUSHED,
        doc="Images stored with packets missing.", max_alarm="1",
    )  # fmt: skip
    def imagesIncomplete(self) -> int:
        return self._ledger_count("incomplete")

    @attribute(
        dtype="DevULong64", unit="images", label="lost", **PUSHED,
        doc="Images that are in no file.", max_alarm="1",
    )  # fmt: skip
    def imagesLost(self) -> int:
        return self._ledger_count("lost")

    @attribute(
        dtype=("DevULong64",), max_dim_x=MAX_IDS, label="incomplete ids",
        doc="Image ids stored with packets missing.",
    )  # fmt: skip
    def incompleteImageIds(self) -> list[int]:
        return _expand(self._outcome()["ledger"].get("incomplete_ids", []))

    @attribute(dtype=("DevULong64",), max_dim_x=MAX_IDS, label="lost ids", doc="Image ids in no file.")
    def lostImageIds(self) -> list[int]:
        by_reason = self._outcome()["ledger"].get("lost_ids", {})
        return sorted(_expand([pair for pairs in by_reason.values() for pair in pairs]))

    @attribute(
        dtype=str, label="ledger",
        doc="The whole account as JSON: counts, ids as [first, last] ranges, reasons.",
    )  # fmt: skip
    def ledger(self) -> str:
        return json.dumps(self._outcome()["ledger"])

    @attribute(
        dtype=str, label="end reason", **PUSHED,
        doc="Why the last acquisition ended.",
    )  # fmt: skip
    def endReason(self) -> str:
        return str(self._outcome()["reason"])

    @attribute(
        dtype=bool, label="failed", **PUSHED,
        doc="Whether the last acquisition ended by an error: endReason says which.",
    )  # fmt: skip
    def failed(self) -> bool:
        return bool(self._outcome()["failed"])

    @attribute(
        dtype=str, label="last file", **PUSHED,
        doc="Master file of the last acquisition: it joins the writers' files.",
    )  # fmt: skip
    def lastFile(self) -> str:
        return str(self._outcome()["master"])

    @attribute(
        dtype=(str,), max_dim_x=MAX_FILES, label="writers' files",
        doc="Files of the writers of the current or last acquisition.",
    )  # fmt: skip
    def writerFiles(self) -> list[str]:
        return list(self._outcome()["files"])

    def acquisition_values(self) -> dict[str, Any]:
        """Return the attributes of the acquisition whose changes are pushed."""
        outcome = self._outcome()
        ledger = outcome["ledger"]
        return {
            "acquisitionStatus": str(outcome["status"]),
            "acquiring": bool(outcome["busy"]),
            "progress": 100.0 * float(outcome["progress"]),
            "imagesExpected": int(ledger.get("expected", 0)),
            "imagesComplete": int(ledger.get("complete", 0)),
            "imagesIncomplete": int(ledger.get("incomplete", 0)),
            "imagesLost": int(ledger.get("lost", 0)),
            "endReason": str(outcome["reason"]),
            "failed": bool(outcome["failed"]),
            "lastFile": str(outcome["master"]),
        }


def _expand(ranges: list[list[int]]) -> list[int]:
    ids: list[int] = []
    for first, last in ranges:
        ids.extend(range(first, min(last, first + MAX_IDS - len(ids) - 1) + 1))
        if len(ids) >= MAX_IDS:
            break
    return ids

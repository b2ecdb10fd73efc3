"""An HDF5 file that can be read at any moment of its life, also when its writer was killed.

HDF5's SWMR mode writes its metadata in an order in which a reader always finds a whole file. The rest is
kept here: the superblock on disk never has the flags that make a plain reader refuse the file, and its
end of file lies ahead of everything that is written. See docs/files.md for what that is worth.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tango_stddaq.closing import Closing
from tango_stddaq.codecs import hdf5_superblock
from tango_stddaq.codecs.hdf5_superblock import SUPERBLOCK_BYTES, Superblock
from tango_stddaq.errors import FileError
from tango_stddaq.io import hdf5_output
from tango_stddaq.io.creation import FILE_ERRORS, FileRules, Place, reason_of
from tango_stddaq.io.identity import as_user
from tango_stddaq.io.reservation import pays, reserve

PAGE_BYTES: Final = 4096
"""Blocks of metadata lie within a page of the kernel, which is written as a whole or not at all."""
_ALIGN_FROM_BYTES: Final = 256
_MARGIN_BYTES: Final = 2**18
"""More than twice what HDF5 writes for itself between two calls of `make_room`: blocks of indexes."""
_STEP_BYTES: Final = 64 * 2**20
_MAX_PIECES: Final = 512


class GrowingFile(Closing):
    """A new file; add groups and datasets to `h5`, then `publish` it.

    Parameters
    ----------
    path
        Where it shall be; must not exist, unless `rules` allow to replace it.

    Raises
    ------
    FileError
        If it cannot be created there.
    """

    def __init__(self, path: Path, rules: FileRules) -> None:
        self.path = path
        self._place = Place(path, rules)
        self.h5: Any = None
        self._fd = -1
        self._end = 0
        self._reserved = 0
        self._can_reserve, self._pays = True, False
        try:
            self._place.check_free()
            with as_user(rules.user_id):
                self.h5, self._fd = hdf5_output.create(
                    self._place,
                    fs_strategy="none",  # nothing is kept back to be written when the file is closed
                    alignment_threshold=_ALIGN_FROM_BYTES,
                    alignment_interval=PAGE_BYTES,
                )
                self._reserve(_MARGIN_BYTES)  # on a full disk HDF5 would crash when SWMR mode begins
                self._pays = pays(self._fd)
                self._place.adopt(self._fd)
        except (*FILE_ERRORS, FileError) as error:
            self.discard()
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path}: cannot be created: {reason_of(error)}") from error

    @property
    def is_open(self) -> bool:
        """Whether it was neither closed nor given up."""
        return self._fd >= 0

    def publish(self) -> None:
        """Begin to write: give the file its name; no group, dataset or attribute is added from now on.

        Raises
        ------
        FileError
            If the name is taken meanwhile.
        """
        try:
            self.h5.swmr_mode = True
            self.make_room()
            self._place.publish()
        except (*FILE_ERRORS, FileError) as error:
            self.discard()
            if isinstance(error, FileError):
                raise
            raise FileError(f"{self.path}: cannot be created: {reason_of(error)}") from error
        self._place.close()

    def make_room(self, n_bytes: int = 0, past_hdf5: bool = False, rows_bytes: int = 0) -> None:
        """Get room on the disk for what is written next, and let the file end beyond it.

        HDF5 does not survive a disk that is full in the middle of its work: it is not asked to write
        before there is room. With `n_bytes` of pixels to come, more room is asked for than without: when
        there is none, what was accepted can still be brought to its end.

        Parameters
        ----------
        past_hdf5
            Whether the pixels go by `write_at`, which bears a full disk: room for them is reserved only
            where that makes writing cheaper, and there is enough.
        rows_bytes
            What rows need that are written later, when these pixels are there. No more than needed: it
            lies behind the pixels, where the next ones go, and some file systems fill it with zeros.

        Raises
        ------
        OSError
            If the disk is full, or the file system refuses for another reason.
        """
        margin = _MARGIN_BYTES if n_bytes else _MARGIN_BYTES // 2
        now = self.h5.id.get_filesize()
        needed = now + n_bytes + rows_bytes + margin
        if past_hdf5:
            self._reserve_pixels(now + n_bytes)
        if needed > self._reserved and self._can_reserve:
            self._reserve(needed)
        if needed > self._end:
            end = needed + max(_STEP_BYTES, 4 * n_bytes)
            os.ftruncate(self._fd, end + PAGE_BYTES)  # longer than it says: it is not closed
            self._set_end(end)

    def _reserve_pixels(self, end: int) -> None:
        if self._pays and end > self._reserved:
            try:
                self._reserve(end)
            except OSError:
                self._pays = False  # nearly full: what fits is written
        self._reserved = max(self._reserved, end)

    def _reserve(self, end: int) -> None:
        self._can_reserve = reserve(self._fd, self._reserved, end)
        self._reserved = end

    def _set_end(self, end: int) -> None:
        """Write the superblock: no flags, another end. 48 bytes at once: it is old or new."""
        data = os.pread(self._fd, SUPERBLOCK_BYTES, 0)
        os.pwrite(self._fd, hdf5_superblock.replaced(data, Superblock(0, end)), 0)
        self._end = end

    def write_at(self, pieces: Sequence[np.ndarray], offset: int) -> None:
        """Write arrays one behind the other, past HDF5, to a place that belongs to a dataset.

        Raises
        ------
        OSError
            If not all bytes can be written.
        """
        for first in range(0, len(pieces), _MAX_PIECES):
            part = pieces[first : first + _MAX_PIECES]
            n_bytes = sum(piece.nbytes for piece in part)
            n_written = os.pwritev(self._fd, part, offset)  # type: ignore[arg-type]
            if n_written < n_bytes:  # a full disk, or more than the 2 GiB of one call
                self._write_rest(part, offset, n_written)
            offset += n_bytes

    def _write_rest(self, pieces: Sequence[np.ndarray], offset: int, done: int) -> None:
        for piece in pieces:
            view = memoryview(piece.data).cast("B")
            while done < len(view):
                n_written = os.pwrite(self._fd, view[done:], offset + done)
                done += n_written
            done -= len(view)
            offset += len(view)

    def close(self) -> None:
        """Bring the file to its final length and close it; all datasets must have been flushed.

        HDF5 itself would write the superblock twice, the first time with flags that make readers refuse
        it. What it writes goes nowhere here: all of it is in the file already.

        Raises
        ------
        FileError
            If the file system refuses; the file is closed all the same.
        """
        if self._fd < 0:
            return
        try:
            end = self.h5.id.get_filesize()
            self._set_end(end)
            os.ftruncate(self._fd, end)
            os.close(os.dup(self._fd))  # some file servers say only now that they cannot take it all
        except FILE_ERRORS as error:
            raise FileError(f"{self.path}: cannot be closed: {reason_of(error)}") from error
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close without writing anything more: the file stays as a killed writer would leave it."""
        if self._fd >= 0:
            hdf5_output.let_go(self.h5, self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Close and remove a file that was not published."""
        self.let_go()
        self._place.discard()
        self._place.close()


def is_closed(path: Path) -> bool:
    """Return whether a file was brought to its end; False if its writer was killed, or is at work.

    Raises
    ------
    FileError
        If it is no HDF5 file of a version that is known here.
    """
    try:
        with path.open("rb") as file:
            block = hdf5_superblock.read(file.read(SUPERBLOCK_BYTES))
            return block.flags == 0 and block.end == os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read back: {reason_of(error)}") from error

"""Joining writers' files to one master file by hand, long after the acquisition."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tango_stddaq.errors import FileError
from tango_stddaq.io import master_file
from tango_stddaq.io.creation import FileRules
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.stored_images import StoredFile


def join(files: Sequence[Path], output: Path) -> int:
    """Join files in the order of image ids; returns how many images there are.

    Parameters
    ----------
    output
        Master file to write; must not exist.

    Raises
    ------
    FileError
        If they are not of one acquisition, or cannot be joined.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(StoredFile(path.resolve())) for path in files]
        kinds = {(file.detector_name, file.data.shape[1:], file.data.dtype) for file in opened}
        if len(kinds) != 1:
            raise FileError(f"the files are not of one acquisition: {sorted(map(str, kinds))}")
        name, shape, dtype = kinds.pop()
        target = output.absolute()
        target = target.parent.resolve() / target.name
        master_file.create(target, Subject(name, shape, dtype), opened, rules=FileRules())
        return sum(file.n_images for file in opened)

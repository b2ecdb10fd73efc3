"""References to data as Sardana writes them: `h5file:///path/file.h5::dataset`. Pure."""

import re
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

DATASET: Final = "entry/data/data"
DEFAULT_PATTERN: Final = "h5file:///tmp/stddaq_{time}_{index:04d}.h5::" + DATASET
_FORM: Final = re.compile(r"^h5file://(?P<path>/[^:]+\.h5)(::(?P<dataset>\S+))?$")


class Target(NamedTuple):
    """Where the images of a point go.

    Attributes
    ----------
    reference
        What Sardana stores in the scan's file.
    """

    directory: str
    name: str
    reference: str


def target_of(pattern: str, index: int, begun: datetime) -> Target:
    """Return where the images of point `index` go.

    Parameters
    ----------
    pattern
        `h5file:///directory/name.h5`, with `{index}` and `{time}` (of the scan's begin) in it.

    Raises
    ------
    ValueError
        If it is not such a pattern.
    """
    try:
        text = pattern.format(index=index, time=begun.strftime("%Y%m%d_%H%M%S"))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"value reference pattern {pattern!r}: {error}; it may hold {{index}} and {{time}}"
        ) from None
    found = _FORM.match(text)
    if found is None or (found["dataset"] or DATASET) != DATASET:
        raise ValueError(
            f"value reference pattern {pattern!r}: h5file:///directory/name.h5::{DATASET} is needed"
        )
    path = Path(found["path"])
    return Target(str(path.parent), path.name, f"h5file://{path}::{DATASET}")

"""How stages of one's own are named, and found: for those who load nothing else of them."""

from typing import Final

ENTRY_POINTS: Final = "tango_stddaq.stages"
"""Group of the entry points by which installed packages offer their stages."""
NAME_PATTERN: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"


def class_name(name: str) -> str:
    """Return the name of a stage as classes are spelled: `roi-sum` becomes `RoiSum`."""
    return "".join(part.capitalize() for part in name.split("-"))

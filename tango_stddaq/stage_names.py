"""How stages are named, and those of one's own found: for those who load nothing else of them."""

from collections.abc import Sequence
from typing import Final

ENTRY_POINTS: Final = "tango_stddaq.stages"
"""Group of the entry points by which installed packages offer their stages."""
NAME_PATTERN: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"


def class_name(name: str) -> str:
    """Return the name of a stage as classes are spelled: `roi-sum` becomes `RoiSum`."""
    return "".join(part.capitalize() for part in name.split("-"))


def module_label(modules: Sequence[int]) -> str:
    """Return a short name for a set of modules: `0-3`, `7`, `0,2,5`."""
    if len(modules) == 1:
        return str(modules[0])
    if list(modules) == list(range(modules[0], modules[-1] + 1)):
        return f"{modules[0]}-{modules[-1]}"
    return ",".join(str(module) for module in modules)

"""Finds the stages that installed packages bring along, by their entry points."""

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from tango_stddaq.errors import ConfigError
from tango_stddaq.stage_names import ENTRY_POINTS, NAME_PATTERN
from tango_stddaq.stages.own_stage import ImageStage, OwnStage

_TAKEN: Final = frozenset({"image", "sync", "filter", "delay-filter", "blosc2", "h5bitshuffle-lz4"})


def names() -> list[str]:
    """Return the names of the stages that are installed."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


def load(name: str) -> type[OwnStage]:
    """Return the class of a stage.

    Raises
    ------
    ConfigError
        If there is none of that name, or it cannot be used; the text says why.
    """
    found: list[EntryPoint] = list(entry_points(group=ENTRY_POINTS, name=name))
    if not found:
        raise ConfigError(
            f"stage {name!r}: is not installed; there are {', '.join(names()) or 'none'}. "
            f"`stddaq new-stage {name}` makes a package to begin with"
        )
    entry = found[0]
    try:
        kind = entry.load()
    except Exception as error:
        raise ConfigError(
            f"stage {name!r}: {entry.value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, OwnStage)):
        raise ConfigError(f"stage {name!r}: {entry.value} is no ImageStage or ValueStage")
    own_name = getattr(kind, "name", None)
    if own_name != name:
        raise ConfigError(f"stage {name!r}: the name of {entry.value} is {own_name!r}; both must agree")
    if not re.match(NAME_PATTERN, name) or (issubclass(kind, ImageStage) and name in _TAKEN):
        raise ConfigError(
            f"stage {name!r}: choose another name: lower case letters and digits with hyphens, and "
            f"none of {', '.join(sorted(_TAKEN))}"
        )
    return kind

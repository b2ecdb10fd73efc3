"""Settings and values of a stage of one's own: declared in its class, seen wherever they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload

from tango_stddaq.errors import ConfigError

_T = TypeVar("_T", int, float, bool, str)
_KINDS: Final = (bool, int, float, str)
_TRUTH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
MAX_TEXT: Final = 4096


class Setting(Generic[_T]):
    """Something that a user may set, before the start or while the stage runs.

    In the class of a stage: `threshold = Setting(100.0, unit="counts", description="...")`. In its code
    `self.threshold` is the value. It is an attribute of the Tango device, and a key below `settings` in
    the configuration.

    Parameters
    ----------
    default
        Its type is the type of the setting: int, float, bool or str.
    minimum, maximum
        Of a number.
    """

    def __init__(
        self,
        default: _T,
        description: str = "",
        unit: str = "",
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> None:
        if type(default) not in _KINDS:
            raise TypeError(f"a setting of type {type(default).__name__}: use int, float, bool or str")
        self.default: _T = default
        self.description = description
        self.unit = unit
        self.minimum = minimum
        self.maximum = maximum
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def kind(self) -> type[_T]:
        """Type of its values."""
        return type(self.default)

    @overload
    def __get__(self, instance: None, owner: type) -> "Setting[_T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> _T: ...

    def __get__(self, instance: object | None, owner: type) -> "Setting[_T] | _T":
        if instance is None:
            return self
        found: _T = vars(instance).get(f"_setting_{self.name}", self.default)
        return found

    def __set__(self, instance: object, value: _T) -> None:
        vars(instance)[f"_setting_{self.name}"] = self.checked(value)

    def checked(self, value: Any) -> _T:
        """Return a value as the setting's type.

        Raises
        ------
        ConfigError
            If it is of another type or out of range.
        """
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise ConfigError(f"setting {self.name}: value {value!r}: {self.kind.__name__} is needed")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ConfigError(f"setting {self.name}: longer than {MAX_TEXT} characters")
        if not isinstance(value, str):
            low, high = self.minimum, self.maximum
            if (
                math.isnan(value)
                or (low is not None and value < low)
                or (high is not None and value > high)
            ):
                raise ConfigError(f"setting {self.name}: value {value!r}: {self._allowed()}")
        return value

    def _allowed(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"allowed are {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"allowed is {self.minimum:g} or more"
        return f"allowed is {self.maximum:g} or less" if self.maximum is not None else "not a number"


@dataclass
class Value:
    """A number that a stage finds in each image.

    In the class of a stage: `roi_sum = Value("counts", "Sum of the region.")`. Its code sets
    `self.roi_sum = ...`. It is an attribute of the Tango device, with events, and in the statistics.

    Parameters
    ----------
    low, high
        Names of settings: outside of them the attribute has the quality ALARM.
    """

    unit: str = ""
    description: str = ""
    low: str = ""
    high: str = ""
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else vars(instance).get(f"_value_{self.name}", float("nan"))

    def __set__(self, instance: object, value: float) -> None:
        vars(instance)[f"_value_{self.name}"] = float(value)

    def is_alarming(self, instance: object) -> bool:
        """Return whether the value is outside of its limits."""
        value = self.__get__(instance, type(instance))
        low = getattr(instance, self.low) if self.low else None
        high = getattr(instance, self.high) if self.high else None
        return bool((low is not None and value < low) or (high is not None and value > high))


def settings_of(kind: type) -> dict[str, Setting[Any]]:
    """Return the settings that a class and those above it declare, by name."""
    return {
        name: entry
        for owner in reversed(kind.__mro__)
        for name, entry in vars(owner).items()
        if isinstance(entry, Setting)
    }


def from_text(kind: type, words: Sequence[str]) -> dict[str, Any]:
    """Read settings as a command line has them, `name=value`.

    Raises
    ------
    ConfigError
        If one is unknown or cannot be read.
    """
    known, found = settings_of(kind), {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or name not in known:
            raise ConfigError(f"{word!r}: NAME=VALUE is needed, with {', '.join(known) or 'no name'}")
        wanted = known[name].kind
        try:
            value = _TRUTH[text.lower()] if wanted is bool else wanted(text)
        except (ValueError, KeyError):
            raise ConfigError(f"setting {name}: {text!r} is no {wanted.__name__}") from None
        found[name] = known[name].checked(value)
    return found


def values_of(kind: type) -> dict[str, Value]:
    """Return the values that a class and those above it declare, by name."""
    return {
        name: entry
        for owner in reversed(kind.__mro__)
        for name, entry in vars(owner).items()
        if isinstance(entry, Value)
    }

"""The Tango class of a stage of one's own, made from what the stage declares."""

import math
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, cast

from tango import AttrQuality
from tango.server import attribute, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.config_entries import OwnStageConfig
from tango_stddaq.devices.base import (
    PUSHED,
    READ_WRITE,
    StageDevice,
    counter_attributes,
    lower_camel,
    serve,
    tango_errors,
)
from tango_stddaq.stages import own_registry
from tango_stddaq.stages.own_settings import Setting, Value, settings_of, values_of
from tango_stddaq.stages.own_stage import OwnStage


class OwnStageDevice(StageDevice):
    """What the devices of all stages of one's own have."""

    stage_type: ClassVar[type[OwnStage]]

    Suffix = device_property(dtype=str, default_value="image", doc="Stream that announces the images.")
    ImageSuffix = device_property(
        dtype=str, default_value="", doc="Ring with the pixels, if it is not that of the stream."
    )

    def make_stage(self, config: DaqConfig) -> OwnStage:
        given = [entry for entry in config.stages if entry.stage == self.stage_type.name]
        settings = given[0].settings if given else {}
        return self.stage_type(config, self.Suffix, self.ImageSuffix, settings)

    def watched(self) -> dict[str, Any]:
        values = super().watched()
        for name in settings_of(self.stage_type):
            if self._stage is not None:
                values[lower_camel(name)] = getattr(self._stage, name)
        return values

    def push_changes(self) -> None:
        """Push values with their quality as well."""
        super().push_changes()
        for name, entry in values_of(self.stage_type).items():
            value, quality = self.value_of(entry)
            if self._pushed.get(name) != (value, quality) and not math.isnan(value):
                self._pushed[name] = value, quality
                self.push_change_event(lower_camel(name), value, time.time(), quality)

    def value_of(self, entry: Value) -> tuple[float, AttrQuality]:
        """Return a value and its quality."""
        if self._stage is None:
            return float("nan"), AttrQuality.ATTR_INVALID
        value = getattr(self._stage, entry.name)
        if math.isnan(value):
            return value, AttrQuality.ATTR_INVALID  # no image yet
        alarming = entry.is_alarming(self._stage)
        return value, AttrQuality.ATTR_ALARM if alarming else AttrQuality.ATTR_VALID


def _value_attribute(entry: Value) -> attribute:
    def read(self: OwnStageDevice) -> tuple[float, float, AttrQuality]:
        value, quality = self.value_of(entry)
        return value, time.time(), quality

    return attribute(
        fget=read, dtype=float, unit=entry.unit, label=entry.name.replace("_", " "),
        doc=entry.description or entry.name, **PUSHED,
    )  # fmt: skip


def _setting_attribute(entry: Setting[Any]) -> attribute:
    def read(self: OwnStageDevice) -> Any:
        return entry.default if self._stage is None else getattr(self._stage, entry.name)

    @tango_errors
    def write(self: OwnStageDevice, value: Any) -> None:
        setattr(self.stage, entry.name, entry.kind(value))
        self._pusher.wake()

    return attribute(
        fget=read, fset=write, dtype=entry.kind, access=READ_WRITE, unit=entry.unit,
        label=entry.name.replace("_", " "), doc=entry.description or entry.name, **PUSHED,
    )  # fmt: skip


def device_class(stage_type: type[OwnStage]) -> type[OwnStageDevice]:
    """Return the Tango class of a stage: settings and values are attributes, named lowerCamelCase."""
    members: dict[str, Any] = {
        "stage_type": stage_type,
        "__doc__": stage_type.__doc__ or f"The stage {stage_type.name}.",
        **counter_attributes(stage_type.counters_spec),
    }
    for name, setting in settings_of(stage_type).items():
        members[lower_camel(name)] = _setting_attribute(setting)
    for name, value in values_of(stage_type).items():
        members[lower_camel(name)] = _value_attribute(value)
    name = OwnStageConfig(stage=stage_type.name).tango_class
    return cast(type[OwnStageDevice], type(name, (OwnStageDevice,), members))


def main() -> None:
    """Run the device server of a stage.

    As `StdDaqRoiSum INSTANCE`, the program that a stage's package brings along and that Tango's Starter
    runs, or as `python -m tango_stddaq.devices.own_stage roi-sum INSTANCE`.
    """
    program = Path(sys.argv[0]).name
    called = [name for name in own_registry.names() if OwnStageConfig(stage=name).tango_class == program]
    name = called[0] if called else sys.argv.pop(1) if len(sys.argv) > 1 else ""
    serve(device_class(own_registry.load(name)))


if __name__ == "__main__":
    main()

"""Tango class of a simulated detector or camera."""

from collections.abc import Sequence
from typing import Any, Final, cast

from tango.server import attribute, command, device_property

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors.registry import detector_of
from tango_stddaq.devices.base import (
    READ_WRITE,
    StageDevice,
    counter_attributes,
    serve,
    tango_errors,
)
from tango_stddaq.errors import ConfigError
from tango_stddaq.sim.faults import Faults
from tango_stddaq.sim.pattern import PacketPattern
from tango_stddaq.sim.stage import Simulator

_MAX_PATTERNS: Final = 64
_FRACTIONS: Final = {
    "drop": "are lost",
    "duplicate": "come twice",
    "reorder": "change places with the next",
    "corrupt": "have a broken header",
    "truncate": "are cut to half",
}


def _fraction_attribute(name: str, effect: str) -> attribute:
    def read(self: "StdDaqSimulator") -> float:
        return float(getattr(self.simulator.faults, name))

    @tango_errors
    def write(self: "StdDaqSimulator", value: float) -> None:
        self.set_faults(**{name: value})

    return attribute(
        fget=read, fset=write, dtype=float, access=READ_WRITE, min_value="0", max_value="1",
        label=f"{name} fraction", doc=f"Fraction of packets that {effect}.", format="%.4f",
    )  # fmt: skip


_OTHER_FAULTS: Final = ("drop_every", "drop_patterns", "dead_modules", "seed")


class StdDaqSimulator(StageDevice):
    """Plays the detector or camera of the configuration, with faults on command."""

    stage_type = Simulator

    AutoStart = device_property(
        dtype=bool, default_value=False, doc="Start sending when the server starts."
    )
    Host = device_property(dtype=str, default_value="127.0.0.1", doc="Where the receivers run.")

    locals().update(counter_attributes(Simulator.counters_spec))
    locals().update(
        {f"{name}Fraction": _fraction_attribute(name, effect) for name, effect in _FRACTIONS.items()}
    )

    def make_stage(self, config: DaqConfig) -> Simulator:
        return Simulator(config, self.Host)

    @property
    def simulator(self) -> Simulator:
        """The stage."""
        return cast(Simulator, self.stage)

    def set_faults(self, **changes: Any) -> None:
        """Change some faults; the account of what was done begins anew.

        Raises
        ------
        ConfigError
            If there are no packets that they could hit.
        """
        if not self.simulator.has_packets:
            raise ConfigError(
                "a camera sends whole images: it has no packets or modules that could fail"
            )
        old = self.simulator.faults
        keep = {name: getattr(old, name) for name in (*_FRACTIONS, *_OTHER_FAULTS)}
        self.simulator.faults = Faults(**{**keep, **changes})

    @attribute(
        dtype=float, access=READ_WRITE, unit="Hz", min_value="0", label="image rate",
        doc="Images per second; 0 for as fast as possible.",
    )  # fmt: skip
    def imageRate(self) -> float:
        return self.simulator.rate_set_hz

    @imageRate.write
    def imageRate(self, value: float) -> None:
        self.simulator.rate_set_hz = value

    @attribute(
        dtype="DevULong64", access=READ_WRITE, unit="images", label="image count",
        doc="Images of a start; 0 means until stopped.",
    )  # fmt: skip
    def imageCount(self) -> int:
        return self.simulator.n_images

    @imageCount.write
    def imageCount(self, value: int) -> None:
        self.simulator.n_images = int(value)

    @attribute(
        dtype="DevULong64", access=READ_WRITE, label="first id", doc="Image id of the first image."
    )
    def firstId(self) -> int:
        return self.simulator.first_id

    @firstId.write
    def firstId(self, value: int) -> None:
        self.simulator.first_id = int(value)

    @attribute(
        dtype=("DevLong",), access=READ_WRITE, max_dim_x=1024, label="dead modules",
        doc="Modules that send nothing.",
    )  # fmt: skip
    def deadModules(self) -> list[int]:
        return sorted(self.simulator.faults.dead_modules)

    @deadModules.write
    @tango_errors
    def deadModules(self, value: Sequence[int]) -> None:
        modules = sorted({int(module) for module in value})
        if self.simulator.has_packets:
            detector_of(self.simulator.config).select(modules)
        self.set_faults(dead_modules=frozenset(modules))

    @attribute(
        dtype="DevULong", access=READ_WRITE, unit="packets", label="drop every",
        doc="Every n-th packet is lost; 0 for none.",
    )  # fmt: skip
    def dropEvery(self) -> int:
        return self.simulator.faults.drop_every

    @dropEvery.write
    @tango_errors
    def dropEvery(self, value: int) -> None:
        self.set_faults(drop_every=int(value))

    @attribute(
        dtype=(str,), access=READ_WRITE, max_dim_x=_MAX_PATTERNS, label="drop patterns",
        doc="Packets that are lost, each as IMAGES:MODULES:PACKETS: `5:*:0-3` is packets 0 to 3 of "
        "image 5, `/10:2:*` every tenth image of module 2.",
    )  # fmt: skip
    def dropPatterns(self) -> list[str]:
        return [pattern.text for pattern in self.simulator.faults.drop_patterns]

    @dropPatterns.write
    @tango_errors
    def dropPatterns(self, value: Sequence[str]) -> None:
        self.set_faults(drop_patterns=tuple(PacketPattern.parse(text) for text in value if text.strip()))

    @attribute(
        dtype="DevULong", access=READ_WRITE, label="fault seed",
        doc="The same seed makes the same faults; they begin anew when it is written.",
    )  # fmt: skip
    def faultSeed(self) -> int:
        return self.simulator.faults.seed

    @faultSeed.write
    @tango_errors
    def faultSeed(self, value: int) -> None:
        self.set_faults(seed=int(value))

    @attribute(
        dtype="DevULong", access=READ_WRITE, unit="images", label="cycle",
        doc="From the next start on, make the packets of so many images in advance and send them again "
        "and again under new ids, as fast as the system can; 0 for each image its own picture.",
    )  # fmt: skip
    def cycle(self) -> int:
        return self.simulator.cycle

    @cycle.write
    @tango_errors
    def cycle(self, value: int) -> None:
        self.simulator.set_cycle(int(value))

    @command(doc_in="Wait before the next image.")
    @tango_errors
    def Pause(self) -> None:
        self.simulator.paused = True

    @command(doc_in="Go on after Pause.")
    @tango_errors
    def Resume(self) -> None:
        self.simulator.paused = False

    @command(doc_in="Count from firstId again, as a detector that was restarted.")
    @tango_errors
    def RestartIds(self) -> None:
        self.simulator.restart_ids()


def main() -> None:
    """Run the device server."""
    serve(StdDaqSimulator)


if __name__ == "__main__":
    main()

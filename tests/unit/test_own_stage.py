"""Functions as stages, stages that fail, and settings."""

import numpy as np
import pytest

from tango_stddaq import testing
from tango_stddaq.errors import ConfigError
from tango_stddaq.stages.own_stage import Image, ImageStage, Setting, image_stage, value_stage

PIXELS = np.arange(24, dtype=np.uint16).reshape(4, 6)


def test_a_function_is_a_stage() -> None:
    @image_stage("upside-down")
    def flip(pixels: np.ndarray) -> np.ndarray:
        return pixels[::-1]

    @value_stage("brightest", unit="counts")
    def brightest(pixels: np.ndarray) -> float:
        """The largest pixel."""
        return float(pixels.max())

    found = testing.run(flip, [PIXELS, PIXELS + 1])
    np.testing.assert_array_equal(found.images[2], (PIXELS + 1)[::-1])
    assert testing.run(brightest, [PIXELS]).values == [{"value": 23}]


def test_an_image_may_change_shape_and_type_or_not_go_on() -> None:
    @image_stage("smaller")
    def smaller(pixels: np.ndarray) -> np.ndarray | None:
        return None if pixels[0, 0] else pixels[:2, :3].astype(np.float32) / 2

    found = testing.run(smaller, [PIXELS, PIXELS + 1])
    assert found.images[1].dtype == np.float32
    np.testing.assert_array_equal(found.images[1], PIXELS[:2, :3] / 2)
    assert (found.counters["images"], found.counters["dropped"]) == (1, 1)


def test_code_that_fails_loses_its_image_and_goes_on() -> None:
    @image_stage("fails")
    def fails(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0] == 1:
            raise RuntimeError("no such luck")
        return pixels

    with testing.running(fails, like=PIXELS) as bench:
        bench.send(PIXELS + 1)
        assert bench.stage.counters["failed"] == 1
        assert any("RuntimeError: no such luck" in line for line in bench.stage.log_lines)
        bench.send(PIXELS)
        assert bench.result()[0] == 2


@pytest.mark.parametrize(
    "made",
    [
        np.zeros(5), np.zeros((100, 100)), np.zeros((0, 3)), np.array([["a"]]),
        np.zeros((2, 2), complex), np.zeros((2, 2), ">u2"), 3,
    ],
    ids=repr,
)  # fmt: skip
def test_a_result_of_no_use_is_counted_and_said(made: object) -> None:
    @image_stage("wrong")
    def wrong(_pixels: np.ndarray) -> np.ndarray:
        return made  # type: ignore[return-value]

    with testing.running(wrong, like=PIXELS) as bench:
        bench.send(PIXELS)
        assert bench.stage.counters["refused"] == 1
        assert any("2-D image" in line for line in bench.stage.log_lines)


def test_the_source_cannot_be_changed() -> None:
    @image_stage("rude")
    def rude(pixels: np.ndarray) -> np.ndarray:
        pixels[:] = 0
        return pixels

    assert testing.run(rude, [PIXELS]).counters["failed"] == 1


class Set(ImageStage):
    name = "set"
    factor = Setting(2, "Times.", minimum=0, maximum=10)
    share = Setting(0.5)
    words = Setting("x")
    on = Setting(True)

    def process(self, pixels: np.ndarray, image: Image) -> np.ndarray | None:
        return pixels * np.uint16(self.factor) if self.on else None


def test_a_name_that_every_stage_uses_is_refused() -> None:
    for name in ("label", "rate", "start", "state"):
        with pytest.raises(TypeError, match=name):
            type("Hides", (ImageStage,), {"name": "hides", name: Setting(1)})


def test_settings_are_checked() -> None:
    config = testing.config_for(PIXELS)
    stage = Set(config, settings={"factor": 3, "share": 1, "on": False})
    assert (stage.factor, stage.share, stage.words, stage.on) == (3, 1.0, "x", False)
    for name, value, said in (
        ("factor", 11, "0 to 10"),
        ("factor", 1.5, "int is needed"),
        ("factor", True, "int is needed"),
        ("share", float("nan"), "share"),
        ("words", "x" * 5000, "longer"),
        ("on", 1, "bool is needed"),
    ):
        with pytest.raises(ConfigError, match=said):
            setattr(stage, name, value)
    with pytest.raises(ConfigError, match="unknown; allowed are factor, share, words, on"):
        Set(config, settings={"colour": 1})
    with pytest.raises(ConfigError, match="own stream"):
        Set(config, "set")

"""The stage with a real ring and real sockets around it."""

import numpy as np
from stddaq_roi_sum.stage import RoiSum

from tango_stddaq import testing

IMAGE = np.arange(24, dtype=np.uint16).reshape(4, 6)


def test_only_the_region_counts() -> None:
    region = {"x": 1, "y": 2, "width": 2, "height": 10}
    found = testing.run(RoiSum, [IMAGE, IMAGE * 2], region)
    wanted = int(IMAGE[2:, 1:3].sum())
    assert [values["roi_sum"] for values in found.values] == [wanted, 2 * wanted]
    assert found.values[0]["roi_mean"] == wanted / 4


def test_a_region_outside_of_the_image_is_empty() -> None:
    assert testing.run(RoiSum, [IMAGE], {"x": 50}).values == [{"roi_sum": 0, "roi_mean": 0}]


def test_limits_make_an_alarm() -> None:
    with testing.running(RoiSum, like=IMAGE, settings={"high_limit": 200.0}) as bench:
        bench.send(IMAGE)
        assert RoiSum.roi_sum.is_alarming(bench.stage)
        bench.stage.high_limit = 300.0
        assert not RoiSum.roi_sum.is_alarming(bench.stage)

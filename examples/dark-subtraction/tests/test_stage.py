"""The stage with a real ring and real sockets around it."""

import numpy as np
from stddaq_dark_subtraction.stage import DarkSubtraction

from tango_stddaq import testing

DARK = np.array([[10, 20, 30], [0, 5, 100]], np.uint16)


def test_without_a_dark_images_stay_as_they_are() -> None:
    found = testing.run(DarkSubtraction, [DARK])
    np.testing.assert_array_equal(found.images[1], DARK)


def test_the_mean_of_the_dark_images_is_taken_off() -> None:
    with testing.running(DarkSubtraction, like=DARK, settings={"dark_images": 2}) as bench:
        bench.send(DARK - DARK // 10)
        bench.send(DARK + DARK // 10)
        assert bench.stage.counters["dropped"] == 2
        assert bench.stage.dark_images == 0
        bench.send(DARK + 7)
        image_id, pixels = bench.result()
        assert image_id == 3
        np.testing.assert_array_equal(pixels, np.full_like(DARK, 7))
        bench.send(DARK // 2)
        assert not bench.result()[1].any()

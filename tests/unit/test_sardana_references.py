"""References of scan points."""

from datetime import datetime

import pytest

from tango_stddaq.sardana.references import DEFAULT_PATTERN, target_of

BEGUN = datetime(2026, 11, 24, 9, 5, 7)


def test_a_point_has_a_file_of_its_own() -> None:
    target = target_of("h5file:///data/p1/scan_{index:03d}.h5::entry/data/data", 7, BEGUN)
    assert target.directory == "/data/p1"
    assert target.name == "scan_007.h5"
    assert target.reference == "h5file:///data/p1/scan_007.h5::entry/data/data"
    without = target_of("h5file:///data/{time}_{index}.h5", 0, BEGUN)
    assert without.reference == "h5file:///data/20261124_090507_0.h5::entry/data/data"
    assert target_of(DEFAULT_PATTERN, 1, BEGUN).name == "stddaq_20261124_090507_0001.h5"


@pytest.mark.parametrize(
    "pattern",
    [
        "", "file:///tmp/x.tiff", "h5file://relative.h5", "h5file:///tmp/{index", "h5file:///tmp/{x}.h5",
        "h5file:///tmp/x.h5::other", "h5file:///tmp/{0}.h5", "h5file:///tmp/{index.x}.h5", "h5file:///tmp/x",
    ],
)  # fmt: skip
def test_a_pattern_of_another_form_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="value reference pattern"):
        target_of(pattern, 0, BEGUN)

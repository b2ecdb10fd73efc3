"""Which detector types have packets known here."""

import numpy as np
import pytest

from tango_stddaq.detectors import eiger
from tango_stddaq.detectors.registry import DETECTORS, detector_of
from tango_stddaq.errors import ConfigError
from tests.conftest import eiger_config


def test_an_eiger_is_described_by_its_module() -> None:
    config = eiger_config("T")
    expected = eiger.detector(config)
    found = detector_of(config)
    assert (found.modules, found.layout) == (expected.modules, expected.layout)
    assert np.array_equal(found.placement.offsets, expected.placement.offsets)


@pytest.mark.parametrize("kind", ["pco", "bsread"])
def test_a_camera_without_udp_packets_is_refused_naming_what_is_known(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"detector_type: value '{kind}'.*allowed are") as caught:
        detector_of(eiger_config("T", detector_type=kind))
    assert all(known in str(caught.value) for known in DETECTORS)

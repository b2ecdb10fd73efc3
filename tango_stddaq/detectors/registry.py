"""Which module describes which detector type; a new detector adds its line here."""

from typing import Final

from tango_stddaq.config import DaqConfig
from tango_stddaq.detectors import eiger, gigafrost, jungfrau
from tango_stddaq.detectors.layout import Detector, DetectorFactory
from tango_stddaq.errors import ConfigError

DETECTORS: Final[dict[str, DetectorFactory]] = {
    "eiger": eiger.detector,
    "gigafrost": gigafrost.detector,
    "jungfrau": jungfrau.detector,
    "jungfrau-converted": jungfrau.detector,
    "jungfrau-raw": jungfrau.detector,
}


def detector_of(config: DaqConfig) -> Detector:
    """Describe the detector of a configuration.

    Raises
    ------
    ConfigError
        If its type sends no packets that we know, or its geometry is wrong.
    """
    factory = DETECTORS.get(config.detector_type)
    if factory is None:
        raise ConfigError(
            f"detector_type: value {config.detector_type!r} has no UDP packets known here; "
            f"allowed are {', '.join(sorted(DETECTORS))}"
        )
    return factory(config)


def mask_words_of(config: DaqConfig) -> int:
    """Return the 64-bit words of an image's mask of missing packets; 0 where no packets are known."""
    try:
        detector = detector_of(config)
    except ConfigError:
        return 0
    return len(detector.modules) * detector.layout.mask_words

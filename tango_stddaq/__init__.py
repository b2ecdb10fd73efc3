"""Standard data acquisition of a synchrotron beamline as Tango device servers."""

from importlib.metadata import version

__version__ = version("tango-stddaq")

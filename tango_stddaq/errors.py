"""The exceptions of the package: one family, each saying what is wrong and what to do."""


class StdDaqError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(StdDaqError):
    """The configuration file cannot be used; the text names key, value and what is allowed."""


class RingError(StdDaqError):
    """A shared-memory ring cannot be created or attached."""


class ChannelError(StdDaqError):
    """A ZeroMQ address cannot be bound or connected."""


class ReceiverError(StdDaqError):
    """A UDP port cannot be opened."""


class FileError(StdDaqError):
    """A data file cannot be created, written or read back."""


class AcquisitionError(StdDaqError):
    """An acquisition cannot be started, or ended without storing what was asked for."""


class StageError(StdDaqError):
    """A stage was used in a way that its state does not allow, or it failed while running."""

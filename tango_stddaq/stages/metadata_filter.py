"""What filters have in common: they pass metadata on, byte for byte, and leave pixels where they are."""

import zmq

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError
from tango_stddaq.io import channels
from tango_stddaq.io.image_source import MetadataSource
from tango_stddaq.stages.base import TURN_S, Stage

_MESSAGES_PER_TURN = 1024


class MetadataFilter(Stage):
    """Listens to the stream of a suffix and publishes some of its messages on its own.

    Subclasses set `suffix`, the name of their own stream, and implement `_take`.

    Parameters
    ----------
    source_suffix
        Stream that announces the images; their pixels are read by nobody here.

    Raises
    ------
    ConfigError
        If it would listen to itself.
    """

    suffix: str

    def __init__(self, config: DaqConfig, source_suffix: str = "image") -> None:
        super().__init__(config)
        if source_suffix == self.suffix:
            raise ConfigError(f"source suffix {source_suffix!r}: is this filter's own stream")
        self.source_suffix = source_suffix
        self._metadata: MetadataSource | None = None
        self._out: zmq.Socket[bytes] | None = None

    def _take(self, messages: list[bytes]) -> list[bytes]:
        """Count messages that came, possibly none, and return those that go on now."""
        raise NotImplementedError

    def _rest(self) -> list[bytes]:
        """Return what was held back and goes on because the stage ends."""
        return []

    def _open(self) -> None:
        name = self.config.detector_name
        self._out = channels.bind(zmq.PUB, channels.ipc_address(name, self.suffix))
        self._metadata = MetadataSource(self.config, self.source_suffix)

    def _turn(self) -> None:
        if self._metadata is not None:
            self._send(
                self._take(self._metadata.receive_messages(int(TURN_S * 1000), _MESSAGES_PER_TURN))
            )

    def _send(self, messages: list[bytes]) -> None:
        if self._out is not None:
            for message in messages:
                self._out.send(message)

    def _program_keys(self) -> dict[str, str]:
        return {"source": self.source_suffix}

    def _close(self) -> None:
        self._send(self._rest())
        if self._metadata is not None:
            self._metadata.close()
        if self._out is not None:
            channels.close(self._out)
        self._metadata = self._out = None

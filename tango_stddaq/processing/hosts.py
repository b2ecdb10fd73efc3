"""Which host does what, and on which ports they talk to each other: `hosts` in the configuration.

The first host receives from the detector, drives the writers and has the facade. Every other one gets
the images forwarded into a ring of its own and runs its writers.
"""

from typing import Final

from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import ConfigError

_ORDER: Final = 0
_PORTS_OF_A_WRITER: Final = 2


def check_host(config: DaqConfig, name: str) -> None:
    """Check the name of a host.

    Raises
    ------
    ConfigError
        If the configuration does not know it.
    """
    if name not in config.hosts:
        known = ", ".join(config.hosts) or "none there"
        raise ConfigError(f"host {name!r}: allowed are the hosts of the configuration: {known}")


def first_host(config: DaqConfig) -> str:
    """Return the host that receives from the detector; "" if there is only one."""
    return next(iter(config.hosts), "")


def writers_of(config: DaqConfig, host: str) -> tuple[int, ...]:
    """Return the writers that run on a host."""
    if not config.hosts:
        return tuple(range(config.number_of_writers))
    return config.hosts[host].writers


def sender_port(config: DaqConfig, part: int) -> int:
    """Return the port of the first host that a part of the images comes from."""
    return config.forward_port + 1 + part


def order_port(config: DaqConfig) -> int:
    """Return the port of the first host that the metadata stream comes from."""
    return config.forward_port + _ORDER


def writer_channels(config: DaqConfig, writer_id: int | str) -> tuple[str, str] | None:
    """Return the TCP addresses of the driver and of a writer that runs on another host.

    None for one that runs beside the driver: they talk over the ipc names of the interface contract.
    """
    first = first_host(config)
    for name, host in config.hosts.items():
        if name != first and writer_id in host.writers and isinstance(writer_id, int):
            port = config.forward_port + 1 + config.max_number_of_forwarders_spawned
            port += _PORTS_OF_A_WRITER * writer_id
            driver = config.hosts[first].address
            return f"tcp://{driver}:{port}", f"tcp://{host.address}:{port + 1}"
    return None

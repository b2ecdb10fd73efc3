"""The endpoints below /api: configuration, HDF5 files, test set-up."""

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from tango_stddaq.errors import AcquisitionError
from tango_stddaq.rest.answers import ok
from tango_stddaq.rest.daq import Daq
from tango_stddaq.rest.stored_files import MetadataReadings, Roots, join

User = Annotated[str, Query(max_length=64, pattern=r"^[\w.@-]*$", description="Who asks: for the log.")]
FileName = Annotated[str, Query(max_length=4096, description="Absolute path of an HDF5 file.")]
Kind = Literal["pco", "gigafrost"]


class JoinRequest(BaseModel):
    """What `/api/h5/create_interleaved_vds` takes."""

    model_config = ConfigDict(extra="ignore", strict=True)

    base_path: str = Field(description="Directory of the writers' files.")
    file_prefix: str = Field(description="First part of their names, before the number.")
    output_file: str = Field(
        description="File to write, which must not exist: a name in base_path, or an absolute path."
    )


def router(daq: Daq, roots: Roots) -> APIRouter:
    """Return the endpoints of a system."""
    routes = APIRouter(prefix="/api")
    readings = MetadataReadings()
    log = logging.getLogger("tango_stddaq.rest")

    @routes.get("/config/get", tags=["config"])
    def get_config(user: User = "") -> dict[str, Any]:
        """Return the bare configuration."""
        return daq.config()

    @routes.post("/config/set", tags=["config"])
    def set_config(changes: Annotated[dict[str, Any], Body()], user: User = "") -> dict[str, Any]:
        """Set the keys given, leave the others, and restart the stages."""
        log.info("[event] the configuration is changed by %r", user)
        return ok("Configuration changed.", config=daq.change_config(changes))

    @routes.get("/h5/read_metadata", tags=["files"])
    def read(filename: FileName) -> dict[str, Any]:
        """Return what is in a file of a writer, or in a master file."""
        return ok("Metadata read.", **readings.read(roots.inside(filename)))

    @routes.get("/h5/get_metadata_status", tags=["files"])
    def status(filename: FileName) -> dict[str, Any]:
        """Return how the last reading of a file went: unknown, reading, done or failed."""
        return ok("Status retrieved.", reading=readings.status(roots.inside(filename)))

    @routes.post("/h5/create_interleaved_vds", tags=["files"])
    def create_vds(request: JoinRequest) -> dict[str, Any]:
        """Join the writers' files of an acquisition to one, in the order of image ids."""
        directory = roots.inside(request.base_path)
        output = roots.inside(str(directory / request.output_file))
        n_images = join(directory, request.file_prefix, output)
        return ok(f"{output}: {n_images} images.", output_file=str(output), n_images=n_images)

    def require_kind(kind: Kind) -> None:
        found = daq.config()["detector_type"]
        if found != kind:
            raise AcquisitionError(f"the detector of this system is {found!r}, not {kind!r}")

    @routes.post("/test/tomcat/{kind}/simulator/start", tags=["test"])
    def start_simulator(kind: Kind) -> dict[str, Any]:
        """Let the simulated detector send images."""
        require_kind(kind)
        daq.start_simulator()
        return ok("Simulator started.", simulation=daq.simulator_status())

    @routes.post("/test/tomcat/{kind}/simulator/stop", tags=["test"])
    def stop_simulator(kind: Kind) -> dict[str, Any]:
        """Let the simulated detector send no more."""
        require_kind(kind)
        daq.stop_simulator()
        return ok("Simulator stopped.", simulation=daq.simulator_status())

    @routes.post("/test/tomcat/server-setup", tags=["test"])
    def setup() -> dict[str, Any]:
        """Make the servers ready for a test: counters to zero, stopped stages started."""
        daq.reset()
        return ok("Servers are ready.", stages=daq.stage_states())

    return routes

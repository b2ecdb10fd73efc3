"""The endpoints that the package std_daq_client uses: /daq, /writer and /simulation."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from tango_stddaq import config as config_module
from tango_stddaq.processing.acquisition import DEFAULT_N_IMAGES
from tango_stddaq.rest.answers import ok
from tango_stddaq.rest.daq import PERIOD_S, Daq, master_request
from tango_stddaq.rest.live import BOUNDARY, LiveView
from tango_stddaq.rest.records import MAX_RECORDS

_MAX_RATE_HZ: Final = 100_000


class WriteRequest(BaseModel):
    """What `/writer/write_sync` and `/writer/write_async` take."""

    model_config = ConfigDict(extra="ignore", strict=True)

    output_file: str = Field(description="Absolute path of the master file; must not exist.")
    n_images: int = Field(ge=1, le=DEFAULT_N_IMAGES, description="Images to take.")
    run_id: int | str | None = Field(
        default=None, description="Anything that tells runs apart; else the time in nanoseconds."
    )


class SimulationRequest(BaseModel):
    """What `/simulation/start` takes; what is left out stays as it is."""

    model_config = ConfigDict(extra="ignore", strict=True)

    n_images: int | None = Field(default=None, ge=0, description="Images to send; 0: until stopped.")
    rate: float | None = Field(default=None, ge=0, le=_MAX_RATE_HZ, description="Images per second.")


def router(daq: Daq, live: LiveView) -> APIRouter:
    """Return the endpoints of a system."""
    routes = APIRouter()
    routes.include_router(_daq_routes(daq, live))
    routes.include_router(_writer_routes(daq))
    routes.include_router(_simulation_routes(daq))
    return routes


def _daq_routes(daq: Daq, live: LiveView) -> APIRouter:
    routes = APIRouter(tags=["daq"])

    def image_bytes() -> int:
        return config_module.from_dict(daq.config()).sizes.slot_bytes

    @routes.get("/daq/config")
    def get_config() -> dict[str, Any]:
        """Return the configuration."""
        return ok("DAQ configuration retrieved.", config=daq.config())

    @routes.post("/daq/config")
    def set_config(changes: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """Set the keys given, leave the others, and restart the stages."""
        return ok("DAQ configuration changed.", config=daq.change_config(changes))

    @routes.get("/daq/stats")
    def get_stats() -> dict[str, Any]:
        """Return what comes from the detector and goes to the files, per second."""
        found, n_bytes = daq.require(), image_bytes()
        rates = {"detector": found.detector_rate_hz, "writer": found.image_rate_hz}
        stats = {
            name: {"bytes_per_second": rate * n_bytes, "images_per_second": rate}
            for name, rate in rates.items()
        }
        return ok("DAQ statistics retrieved.", stats=stats)

    @routes.get("/daq/logs/{n_logs}")
    def get_logs(n_logs: Annotated[int, Path(ge=0, le=MAX_RECORDS)]) -> dict[str, Any]:
        """Return the acquisitions that ended last, the newest first."""
        return ok(f"Last {n_logs} acquisitions retrieved.", logs=daq.records.last(n_logs))

    @routes.get("/daq/deployment")
    def get_deployment() -> dict[str, Any]:
        """Return what became of the last change of the configuration."""
        return ok("Deployment status retrieved.", deployment=daq.deployment.to_dict())

    @routes.get("/daq/live", response_class=StreamingResponse)
    def get_live() -> StreamingResponse:
        """Show the live image, as MJPEG: open it in a browser."""
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return StreamingResponse(live.stream(), media_type=kind)

    return routes


def _writer_routes(daq: Daq) -> APIRouter:
    routes = APIRouter(tags=["writer"])

    def writer_status() -> dict[str, Any]:
        found = daq.require()
        return {
            "acquisition": daq.records.current.to_dict(),
            "state": "WRITING" if found.busy else "READY",
        }

    @routes.get("/writer/status")
    def get_writer_status() -> dict[str, Any]:
        """Return the acquisition under way, or the last one."""
        return ok("Writer status retrieved.", writer=writer_status())

    @routes.post("/writer/write_async")
    def write_async(request: WriteRequest) -> dict[str, Any]:
        """Begin an acquisition; returns when images are awaited."""
        daq.start(master_request(request.output_file, request.n_images), request.run_id)
        return ok("Writing started.", writer=writer_status())

    @routes.post("/writer/write_sync")
    async def write_sync(request: WriteRequest) -> dict[str, Any]:
        """Begin an acquisition; returns when its files are closed and checked."""
        wanted = master_request(request.output_file, request.n_images)
        mine = await run_in_threadpool(daq.start, wanted, request.run_id)
        while mine.stop_s is None:
            daq.require()  # else nobody would ever say that it has ended
            await asyncio.sleep(PERIOD_S)
        writer = {**writer_status(), "acquisition": mine.to_dict()}
        return ok(mine.message, writer=writer)

    @routes.post("/writer/stop")
    async def stop() -> dict[str, Any]:
        """End the acquisition; what was accepted is saved. Returns when it is."""
        await run_in_threadpool(daq.stop)
        while daq.require().busy:
            await asyncio.sleep(PERIOD_S)
        return ok("Writing stopped.", writer=writer_status())

    return routes


def _simulation_routes(daq: Daq) -> APIRouter:
    routes = APIRouter(tags=["simulation"])

    @routes.get("/simulation/status")
    def get_simulation() -> dict[str, Any]:
        """Return what the simulated detector does."""
        return ok("Simulation status retrieved.", simulation=daq.simulator_status())

    @routes.post("/simulation/start")
    def start_simulation(request: SimulationRequest | None = None) -> dict[str, Any]:
        """Let the simulated detector send images."""
        wanted = request or SimulationRequest()
        daq.start_simulator(wanted.n_images, wanted.rate)
        return ok("Simulation started.", simulation=daq.simulator_status())

    @routes.post("/simulation/stop")
    def stop_simulation() -> dict[str, Any]:
        """Let the simulated detector send no more."""
        daq.stop_simulator()
        return ok("Simulation stopped.", simulation=daq.simulator_status())

    return routes

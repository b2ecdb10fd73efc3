"""`stddaq view`: what a person sees of a stream, and of one that is none."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image as PilImage

from tango_stddaq.cli.view import screen
from tango_stddaq.errors import ChannelError
from tango_stddaq.io import channels
from tango_stddaq.io.stream_client import StreamClient
from tango_stddaq.processing.preview import to_gray

from .programs import PATIENCE_S, Program, refused
from .programs import running as program_running
from .test_camera_receivers import wait_until
from .test_live_stream import SHAPE, Bench, bench, picture, stream_config

pytestmark = pytest.mark.system


def publish_until_ended(run: Bench, program: Program, image_id: int = 42) -> None:
    deadline = time.monotonic() + 60
    while program.process.poll() is None:
        assert time.monotonic() < deadline, program.output
        run.source.publish(image_id, picture(image_id, SHAPE, "uint32"))
        time.sleep(0.02)
    assert program.process.returncode == 0, program.output


@pytest.mark.parametrize("protocol", ["array-1.0", "bsread"])
def test_a_picture_file_holds_the_image(detector_name: str, tmp_path: Path, protocol: str) -> None:
    file = tmp_path / "image.png"
    with bench(stream_config(detector_name), protocol=protocol) as run:
        call = ("view", run.stage.endpoint, "--png", file)
        with program_running(tmp_path / "log", *call) as program:
            publish_until_ended(run, program)
            assert f"{file}: image 42  128 x 64 uint32  min 0 max 99" in program.output
        np.testing.assert_array_equal(
            np.asarray(PilImage.open(file)), to_gray(picture(42, SHAPE, "uint32"))
        )
        assert list(tmp_path.glob("*.part")) == []


def test_the_terminal_shows_the_image_and_its_facts(detector_name: str, tmp_path: Path) -> None:
    with bench(stream_config(detector_name)) as run:
        call = ("view", run.stage.endpoint, "-n", 2)
        with program_running(tmp_path / "log", *call) as program:
            publish_until_ended(run, program)
            assert "▀" * 64 in program.output
            assert "image 42  128 x 64 uint32  min 0 max 99" in program.output
            assert "array-1.0" in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_term_ends_it(detector_name: str, tmp_path: Path, number: int) -> None:
    with (
        bench(stream_config(detector_name)) as run,
        program_running(tmp_path / "log", "view", run.stage.endpoint) as program,
    ):
        wait_until(lambda: run.stage.counters["n_active_connections"], PATIENCE_S)
        code, _ = program.end(number)
        assert (code, "Traceback" in program.output) == (0, False), program.output


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    refused("view", "ipc:///tmp/x", words=("ipc:///tmp/x", "tcp://HOST:PORT"))
    refused("view", "tcp://127.0.0.1:1", "--timeout", "0.3", words=("no image within 0.3 s",))
    refused(
        "view", "tcp://127.0.0.1:1", "--timeout", "0.3", "--png", tmp_path / "x.png",
        words=("no image within 0.3 s",),
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"rubbish", b"x"], "not JSON"),
        ([b"[]"], "1 frames"),
        ([b'{"htype":"array-1.0","shape":[2,2],"type":"uint8","frame":1}', b"xyz"], "3 bytes of pixels"),
        ([b'{"htype":"bsr_m-1.1"}', b"x"], "2 frames; at least 4"),
        ([b'{"htype":"other"}', b"x", b"y"], "'other'"),
        ([b"x" * 100_000, b"y"], "header of 100000 bytes"),
    ],
)
def test_messages_of_others_are_counted_and_named(frames: list[bytes], words: str) -> None:
    server = channels.bind(zmq.XPUB, "tcp://127.0.0.1:*")
    try:
        with StreamClient(server.getsockopt_string(zmq.LAST_ENDPOINT)) as client:
            assert server.poll(10_000)
            server.send_multipart(frames)
            assert client.newest(10) is None
            assert client.n_malformed == 1
            assert words in client.last_fault
            server.send_multipart(
                [b'{"htype":"array-1.0","shape":[1,2],"type":"uint8","frame":7}', b"\x01\x02"]
            )
            image = client.newest(10)
            assert image is not None
            assert (image.image_id, image.pixels.tolist()) == (7, [[1, 2]])
    finally:
        channels.close(server)


def test_the_newest_image_is_taken_and_all_are_counted(detector_name: str) -> None:
    with bench(stream_config(detector_name)) as run, StreamClient(run.stage.endpoint) as client:
        deadline, image_id = time.monotonic() + 30, 0
        while client.n_received < 5:
            assert time.monotonic() < deadline
            for _ in range(3):
                run.source.publish(image_id, picture(image_id, SHAPE, "uint32"))
                image_id += 1
            time.sleep(0.05)
            image = client.newest(0.1)
            if image is not None:
                np.testing.assert_array_equal(image.pixels, picture(image.image_id, SHAPE, "uint32"))
    with pytest.raises(ChannelError):
        StreamClient("tcp://nothing")


@pytest.mark.parametrize(
    ("shape", "columns", "expected"),
    [
        ((64, 128), 128, (128, 32)), ((64, 128), 127, (64, 16)), ((514, 1030), 80, (80, 20)),
        ((2000, 10), 80, (1, 32)), ((1, 1), 80, (1, 1)), ((5, 3), 80, (3, 3)),
    ],
)  # fmt: skip
def test_the_image_fits_the_terminal(
    shape: tuple[int, int], columns: int, expected: tuple[int, int]
) -> None:
    segments = screen(picture(1, shape, "float32"), columns, rows=32).segments
    text = "".join(segment.text for segment in segments)
    lines = text.removesuffix("\n").split("\n")
    assert {len(line) for line in lines} == {expected[0]}
    assert len(lines) == expected[1]

"""A writer checks by itself where it is told to create a file: whoever drives it."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from tango_stddaq.codecs.writer_action import Action, CloseFile, CreateFile, Response
from tango_stddaq.config import DaqConfig
from tango_stddaq.stages.base import Stage
from tango_stddaq.stages.file_writer import FileWriter
from tango_stddaq.stages.meta_writer import MetaWriter
from tango_stddaq.stages.writer_link import WriterLink

from .programs import wait_until
from .rig import rig_config

pytestmark = [pytest.mark.system, pytest.mark.expects_errors]


class Bench:
    """One writer that may write below `inside` only, and a driver that sends what it likes."""

    def __init__(self, config: DaqConfig, tmp_path: Path, kind: str) -> None:
        self.config = config
        self.inside, self.outside = tmp_path / "inside", tmp_path / "outside"
        self.inside.mkdir()
        self.outside.mkdir()
        roots = (str(self.inside),)
        self.stage: Stage
        if kind == "file":
            self.stage, writer_id = FileWriter(config, 0, output_roots=roots), 0
        else:
            self.stage, writer_id = MetaWriter(config, roots), "meta"
        self.link = WriterLink(config, writer_id)
        self.stage.start()

    def ask(self, action: Action) -> Response:
        self.link.send(action)
        replies: list[Response] = []

        def answered() -> bool:
            self.link.pump()
            reply = self.link.take_reply()
            replies.extend([reply] if reply is not None else [])
            return bool(replies)

        wait_until(answered, f"an answer to {action}")
        return replies[0]

    def check_good(self, name: str = "good.h5") -> None:
        """What is allowed is done, and the file is a good one."""
        path = self.inside / name
        assert self.ask(CreateFile(str(path))).ok
        assert self.ask(CloseFile()).ok
        with h5py.File(path) as file:
            assert len(file[f"{self.config.detector_name}/metadata"]) == 0

    def check_refused(self, path: str, word: str) -> None:
        reply = self.ask(CreateFile(path))
        assert not reply.ok
        assert word in reply.reason, reply.reason
        assert not list(self.outside.iterdir())


@pytest.fixture(params=["file", "metadata"])
def bench(request: pytest.FixtureRequest, detector_name: str, tmp_path: Path) -> Iterator[Bench]:
    config = rig_config(
        detector_name, number_of_writers=1, detector_type="gigafrost", n_modules=8,
        image_pixel_height=4, image_pixel_width=24, gpfs_block_size=2**20,
    )  # fmt: skip
    bench = Bench(config, tmp_path, request.param)
    yield bench
    bench.stage.stop(10)
    bench.link.close()


def test_a_path_outside_the_roots_is_refused_by_the_writer_itself(bench: Bench) -> None:
    for path in (
        bench.outside / "a.h5",
        bench.inside / ".." / "outside" / "a.h5",
        bench.inside.with_name("inside-not") / "a.h5",
    ):
        path.parent.mkdir(exist_ok=True)
        bench.check_refused(str(path), "outside the allowed directories")
    bench.check_refused("a.h5", "absolute path")
    bench.check_good()


def test_a_symlink_does_not_lead_out_of_the_roots(bench: Bench) -> None:
    (bench.inside / "link").symlink_to(bench.outside)
    bench.check_refused(str(bench.inside / "link" / "a.h5"), "outside the allowed directories")
    # A link in the place of the file itself: the name is taken, and what it leads to is not touched.
    (bench.inside / "a.h5").symlink_to(bench.outside / "a.h5")
    bench.check_refused(str(bench.inside / "a.h5"), "exists already")
    bench.check_good()


def test_overwriting_replaces_a_symlink_and_not_what_it_leads_to(bench: Bench) -> None:
    precious = bench.outside / "precious.h5"
    precious.write_text("precious")
    link = bench.inside / "a.h5"
    link.symlink_to(precious)
    assert bench.ask(CreateFile(str(link), overwrite=True)).ok
    assert bench.ask(CloseFile()).ok
    assert precious.read_text() == "precious"
    assert not link.is_symlink()
    assert h5py.is_hdf5(link)


def test_an_existing_file_is_refused_by_the_writer_and_replaced_on_request(bench: Bench) -> None:
    bench.check_good("a.h5")
    before = (bench.inside / "a.h5").read_bytes()
    reply = bench.ask(CreateFile(str(bench.inside / "a.h5")))
    assert (reply.ok, "exists already" in reply.reason) == (False, True)
    assert (bench.inside / "a.h5").read_bytes() == before
    inode = (bench.inside / "a.h5").stat().st_ino
    assert bench.ask(CreateFile(str(bench.inside / "a.h5"), overwrite=True)).ok
    assert bench.ask(CloseFile()).ok
    assert (bench.inside / "a.h5").stat().st_ino != inode

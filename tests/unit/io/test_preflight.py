"""What is refused before an acquisition starts, and that every refusal says why."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tango_stddaq.codecs import writer_action
from tango_stddaq.config import DaqConfig
from tango_stddaq.errors import AcquisitionError
from tango_stddaq.io.preflight import MAX_PATH_BYTES, Request, check
from tests.conftest import eiger_config


@pytest.fixture
def daq() -> DaqConfig:
    return eiger_config("T")


def refusal(daq: DaqConfig, directory: Path, roots: tuple[str, ...] = (), **changes: Any) -> str:
    request = replace(Request(str(directory), "run_", n_images=1), **changes)
    with pytest.raises(AcquisitionError) as caught:
        check(request, daq, 2, roots)
    return str(caught.value)


def test_names_of_the_files() -> None:
    request = Request("/data", "run_")
    assert list(map(str, request.writer_files(2))) == ["/data/run_0.h5", "/data/run_1.h5"]
    assert [Request("/d", prefix).master_file().name for prefix in ("run_", "file", "a-", "a.")] == [
        "run_master.h5", "file_master.h5", "a-master.h5", "a.master.h5",
    ]  # fmt: skip


def test_a_good_request_passes_and_creates_nothing(daq: DaqConfig, tmp_path: Path) -> None:
    check(Request(str(tmp_path), "run_", 100), daq, 2, [str(tmp_path)])
    check(Request(str(tmp_path)), daq, 1)
    assert list(tmp_path.iterdir()) == []


def test_images_that_come_compressed_are_not_counted_as_whole(daq: DaqConfig, tmp_path: Path) -> None:
    check(Request(str(tmp_path), n_images=10**9), daq, 1, compressed=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_images": 0}, ["imageCount 0", "1 or more"]),
        ({"start_id": -1}, ["startId -1", "0 or more"]),
        ({"writer_user_id": 2**31}, ["2147483648", "2147483647"]),
        ({"n_images": 10**9}, ["1000000000 images need", "GiB are free"]),
        ({"path": ""}, ["outputPath is empty"]),
        ({"path": "data"}, ["outputPath 'data'", "absolute"]),
        ({"path": "/does/not/exist"}, ["outputPath '/does/not/exist'", "does not exist"]),
        ({"path": "/\0"}, ["outputPath", "does not exist"]),
        ({"path": "/\ud800"}, ["outputPath", "does not exist"]),
        ({"path": "/dev/null"}, ["outputPath '/dev/null'", "not a directory"]),
        ({"file_prefix": "x" * 201}, ["filePrefix", "200 bytes"]),
        ({"file_prefix": "é" * 101}, ["filePrefix", "200 bytes"]),
        ({"file_prefix": "a\udc80"}, ["not UTF-8"]),
    ],
)
def test_a_bad_request_is_refused_naming_key_and_reason(
    daq: DaqConfig, tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    error = refusal(daq, tmp_path, **changes)
    assert [text for text in named if text not in error] == []


@pytest.mark.parametrize("prefix", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a\0", "a\n"])
def test_a_prefix_with_directories_or_hidden_is_refused(
    daq: DaqConfig, tmp_path: Path, prefix: str
) -> None:
    assert f"filePrefix {prefix!r}" in refusal(daq, tmp_path, file_prefix=prefix)


def test_without_writers_nothing_can_be_written(daq: DaqConfig, tmp_path: Path) -> None:
    with pytest.raises(AcquisitionError, match="number_of_writers is 0"):
        check(Request(str(tmp_path)), daq, 0)


@pytest.mark.parametrize("name", ["run_0.h5", "run_1.h5", "run_master.h5"])
def test_no_file_is_overwritten_nor_a_dangling_link_followed(
    daq: DaqConfig, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert f"{tmp_path / name}: exists already" in refusal(daq, tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).touch()
    assert f"{tmp_path / name}: exists already" in refusal(daq, tmp_path)


def test_files_of_other_writers_do_not_matter(daq: DaqConfig, tmp_path: Path) -> None:
    (tmp_path / "run_2.h5").touch()
    check(Request(str(tmp_path), "run_", 1), daq, 2)


def test_a_directory_outside_the_roots_is_refused_also_behind_a_link(
    daq: DaqConfig, tmp_path: Path
) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-2"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    for path in (outside, root / "link", root / ".." / "root-2"):
        assert f"outside the allowed directories {root}" in refusal(daq, path, roots=(str(root),))
    check(Request(str(root), "run_", 1), daq, 1, [str(outside), str(root)])


def test_a_file_name_that_no_writer_can_be_told_is_refused(daq: DaqConfig, tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep)) < MAX_PATH_BYTES - 100:
        deep = deep / ("d" * 90)
    deep.mkdir(parents=True)
    longest = "x" * (MAX_PATH_BYTES - len(f"{deep}/_master.h5"))
    check(Request(str(deep), longest, 1), daq, 2)
    writer_action.encode(writer_action.CreateFile("x" * MAX_PATH_BYTES, -1))
    assert f"{MAX_PATH_BYTES + 1} bytes; allowed are" in refusal(daq, deep, file_prefix=longest + "x")


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("ordinary_user")
def test_a_directory_without_write_permission_is_refused(daq: DaqConfig) -> None:
    assert "may not write there" in refusal(daq, Path("/usr"))

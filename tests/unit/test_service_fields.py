"""Statistics under the names of the existing services."""

import re
from pathlib import Path

import pytest

from tango_stddaq.service_fields import (
    SERVICES,
    Grown,
    Now,
    Periods,
    PerSecond,
    Quotient,
    influx_fields,
    program_of,
    program_text,
)

CONTRACT = {
    "processed_times", "repetition_rate_hz", "frames_counter", "n_corrupted_frames", "n_missed_packets",
    "n_corrupted_images", "queue", "n_written_images", "avg_buffer_write_us", "max_buffer_write_us",
    "avg_throughput", "forwarded_images", "zmq_receive_fails", "images_missed", "compressed_images",
    "ratio", "zmq_fails", "n_active_connections",
}  # fmt: skip


def test_the_table_has_every_field_of_the_contract_and_no_other() -> None:
    assert {name for service in SERVICES.values() for name in service.fields} == CONTRACT


def stages() -> dict[str, set[str]]:
    """Counters of all stages there are, by the stage's name."""
    import importlib
    import pkgutil

    from tango_stddaq import stages as package
    from tango_stddaq.stages.base import Stage

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")

    def below(kind: type[Stage]) -> list[type[Stage]]:
        return [found for child in kind.__subclasses__() for found in (child, *below(child))]

    return {
        kind.name: {counter.name for counter in kind.counters_spec}
        for kind in below(Stage)
        if "name" in kind.__dict__ and kind.__module__.startswith(package.__name__)
    }


def test_every_stage_has_an_entry_whose_counters_exist() -> None:
    said_beside_counters = {"max_buffer_write_us"}
    found = stages()
    assert len(found) >= 10
    for name, counters in found.items():
        for field, source in SERVICES[name].fields.items():
            names = {
                Grown: lambda s: s.counters,
                Now: lambda s: (s.counter,),
                PerSecond: lambda s: (s.counter,),
                Quotient: lambda s: (s.above, s.below),
            }[type(source)](source)
            assert set(names) - said_beside_counters <= counters, f"{name}: {field}"


def test_fields_are_of_the_period_and_add_up_to_the_counters() -> None:
    periods = Periods(SERVICES["udp-recv"])
    periods.start({"frames": 100}, 0.0)
    first = periods.end({"frames": 130, "incomplete_frames": 2, "missing_packets": 5}, 10.0)
    assert first == {
        "processed_times": 30, "repetition_rate_hz": 3.0,
        "frames_counter": 30, "n_corrupted_frames": 2, "n_missed_packets": 5,
    }  # fmt: skip
    second = periods.end({"frames": 135, "incomplete_frames": 2, "missing_packets": 9}, 20.0)
    assert (second["frames_counter"], second["n_missed_packets"]) == (5, 4)
    assert second["repetition_rate_hz"] == 0.5


def test_a_period_without_time_or_work_divides_by_nothing() -> None:
    periods = Periods(SERVICES["file-writer"])
    fields = periods.end({"images": 0}, 5.0)
    assert set(fields.values()) == {0}


def test_a_writers_times_are_per_image_and_its_throughput_in_mib_per_ms() -> None:
    periods = Periods(SERVICES["file-writer"])
    periods.start({}, 0.0)
    fields = periods.end(
        {"images": 4, "write_us": 2000, "bytes": 4 * 2**20, "max_buffer_write_us": 900.0}, 10.0
    )
    assert fields["n_written_images"] == 4
    assert fields["avg_buffer_write_us"] == 500
    assert fields["max_buffer_write_us"] == 900
    assert fields["avg_throughput"] == 2.0  # 4 MiB in 2 ms


def test_corrupted_images_are_those_published_with_something_missing() -> None:
    periods = Periods(SERVICES["module-sync"])
    periods.start({}, 0.0)
    fields = periods.end({"images": 9, "incomplete": 2, "overwritten": 1, "queue": 3}, 1.0)
    assert (fields["n_corrupted_images"], fields["queue"]) == (3, 3)


def test_a_reset_counter_never_counts_backwards() -> None:
    periods = Periods(SERVICES["module-sync"])
    periods.start({"images": 50}, 0.0)
    assert periods.end({"images": 0}, 1.0)["processed_times"] == 0


def test_our_counters_stand_beside_them_and_no_name_means_two_things() -> None:
    service = SERVICES["compressor"]
    counters = {"images": 20, "compressed_images": 18, "bytes": 100, "compressed_bytes": 25}
    periods = Periods(service)
    periods.start({name: value // 2 for name, value in counters.items()}, 0.0)
    fields = influx_fields(service, counters, periods.end(counters, 1.0))
    assert fields["compressed_images"] == 9
    assert fields["compressed_images_total"] == 18
    assert fields["images"] == 20
    assert fields["ratio"] == pytest.approx(13 / 50)


def test_the_text_is_that_of_the_existing_programs() -> None:
    fields = {
        "processed_times": 7,
        "repetition_rate_hz": 0.7,
        "zmq_receive_fails": 0,
        "images_missed": 1,
    }
    assert program_text("GF-TEST", {"image_part": "6"}, fields) == (
        "detector=GF-TEST,image_part=6,processed_times=7,repetition_rate_hz=0.70,"
        "zmq_receive_fails=0,images_missed=1"
    )
    writer = {
        "n_written_images": 12_345_678, "avg_buffer_write_us": 12.4, "max_buffer_write_us": 30.0,
        "avg_throughput": 1.005,
    }  # fmt: skip
    assert program_text("D", {"source": "image", "id": "2"}, writer) == (
        "detector=D,source=image,id=2,n_written_images=12345678,avg_buffer_write_us=12,"
        "max_buffer_write_us=30,avg_throughput=1.00"
    )


@pytest.mark.parametrize(
    ("stage", "detector", "label", "program"),
    [
        ("udp-recv", "eiger", "0-3", "std_udp_recv_eg"),
        ("udp-recv", "jungfrau-converted", "0", "std_udp_recv_jf"),
        ("data-convert", "gigafrost", "7", "std_data_convert_gf"),
        ("compressor", "eiger", "h5bitshuffle-lz4", "std_data_compress_h5bitshuffle_lz4"),
        ("compressor", "pco", "blosc2", "std_data_compress_blosc2"),
        ("file-writer", "eiger", "0", "std_det_writer"),
    ],
)
def test_a_stage_has_the_name_of_the_program_it_replaces(
    stage: str, detector: str, label: str, program: str
) -> None:
    assert program_of(SERVICES[stage], detector, label) == program


def test_the_page_explains_every_field_of_every_service() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "logging.md").read_text()
    table = page.split("### Fields of the existing services")[1].split("### Our own fields")[0]
    found: dict[str, set[str]] = {}
    names: list[str] = []
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if not row.startswith("| ") or len(cells) != 5 or cells[0] == "measurement":
            continue
        names = re.findall(r"`([^`]+)`", cells[0]) or ([*SERVICES] if cells[0] else names)
        for name in names:
            found.setdefault(name, set()).update(re.findall(r"`([^`]+)`", cells[1]))
    assert found == {name: set(service.fields) for name, service in SERVICES.items()}

"""The generated protobuf code is what the .proto file says today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "tango_stddaq" / "codecs" / "pb"


def test_generated_protobuf_code_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
         f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "std_daq_protocol.proto"],
        check=True,
    )  # fmt: skip
    fresh = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(fresh) == {"std_daq_protocol_pb2.py", "std_daq_protocol_pb2.pyi"}
    for name, content in fresh.items():
        assert (GENERATED / name).read_bytes() == content, f"{name} is old: run `make proto`"

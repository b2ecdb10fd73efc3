"""Where compiled loops are cached: a directory per user that goes by the text of the sources.

numba compares only the file of the outermost function with its cache. A change in a function that was
compiled into another file's would go unnoticed, and a site-wide installation cannot be written to.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

_VARIABLE: Final = "NUMBA_CACHE_DIR"
_COMPILED: Final = (
    "processing", "io/udp.py", "io/send_buffers.py", "io/sync_loop.py", "io/zmq_calls.py",
    "sim/send_loop.py",
    # Their constants are compiled in.
    "codecs/image_metadata.py", "detectors/layout.py", "io/channels.py", "model.py",
)  # fmt: skip


def set_cache_directory() -> None:
    """Point numba to the cache; call before it is imported. A user's own setting is respected."""
    if _VARIABLE in os.environ:
        return
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for part in _COMPILED:
        path = root / part
        for source in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "tango_stddaq" / digest.hexdigest()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # numba looks for a place by itself
    os.environ[_VARIABLE] = str(directory)

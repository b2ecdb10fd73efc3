"""Write docs/configuration.md from the schema in the code: `python docs/generate_configuration.py`."""

import json
from pathlib import Path
from typing import Any, Final

from tango_stddaq import config, config_sizes

PAGE: Final = Path(__file__).resolve().parent / "configuration.md"

HEAD: Final = """# Configuration

<!-- Written by docs/generate_configuration.py: change the text in tango_stddaq/config_keys.py. -->

One JSON file describes one data acquisition. Every stage reads the same file when it starts.

- `stddaq config check FILE` checks a file and prints the sizes that follow from it.
- `stddaq config schema` prints the JSON schema, for editors and other programs.
- An error names the key, its value and what is allowed. The faults of all keys come together.
- A key that is not in these tables is kept and reported. It is not an error.
- A key that stands twice in the file is an error.
"""

SIZES: Final = """## What follows from them

Nobody computes a size twice: [config_sizes.py](../tango_stddaq/config_sizes.py) holds them all.

| size | rule |
|---|---|
| pixel of the ring | `jungfrau-converted`: float32; `gigafrost`: uint16; else uint of `bit_depth` |
| bytes of a slot | height x width x bytes of a pixel |
| slots of the ring | `ring_slots`, or `ram_buffer_gb` divided by the slot and at least {min_slots} |
| bytes of the segment | slots x bytes of a slot, rounded up to {align} MiB |
| images in a chunk | `gpfs_block_size` divided by the slot, at least 1 |

## Example

The demo uses this one, on free ports:

```json
{example}
```
"""

EXAMPLE: Final[dict[str, Any]] = {
    "detector_name": "EIGER1",
    "detector_type": "eiger",
    "n_modules": 4,
    "bit_depth": 16,
    "image_pixel_height": 514,
    "image_pixel_width": 1030,
    "start_udp_port": 50010,
    "module_positions": {
        "0": [0, 0, 513, 255],
        "1": [516, 0, 1029, 255],
        "2": [0, 513, 513, 258],
        "3": [516, 513, 1029, 258],
    },
    "number_of_writers": 2,
    "ring_slots": 200,
    "live_stream_configs": {"tcp://127.0.0.1:5555": {"type": "forward"}},
}


def render() -> str:
    """Return the text of the page."""
    schema = config.schema()
    required = set(schema["required"])
    keys = schema["properties"]
    names = (
        "LiveStreamConfig",
        "CompressorConfig",
        "FilterConfig",
        "OwnStageConfig",
        "RingMemoryConfig",
        "InfluxConfig",
        "HostConfig",
    )
    stream, compressor, filters, own, memory, influx, host = (schema["$defs"][name] for name in names)
    parts = [
        HEAD,
        "## Mandatory keys\n",
        _table({name: entry for name, entry in keys.items() if name in required}, with_default=False),
        "## Optional keys\n",
        _table({name: entry for name, entry in keys.items() if name not in required}),
        "## Entries of `live_stream_configs`\n",
        " ".join(stream["description"].split()) + "\n",
        _table(stream["properties"], required=set(stream["required"])),
        "## Entries of `compressors`\n",
        " ".join(compressor["description"].split()) + " See [compression](compression.md).\n",
        _table(compressor["properties"], required=set(compressor["required"])),
        "## Entries of `filters`\n",
        " ".join(filters["description"].split()) + " See [filters](filters.md).\n",
        _table(filters["properties"], required=set(filters["required"])),
        "## Entries of `stages`\n",
        " ".join(own["description"].split()) + " See [a stage of your own](own-stage.md).\n",
        _table(own["properties"], required=set(own["required"])),
        "## Entries of `hosts`\n",
        " ".join(host["description"].split()) + "\n",
        _table(host["properties"], required=set(host["required"])),
        "## Entries of `ring_memory`\n",
        " ".join(memory["description"].split()) + "\n",
        _table(memory["properties"]),
        "## Entries of `influxdb`\n",
        " ".join(influx["description"].split()) + " See [logs and statistics](logging.md).\n",
        _table(influx["properties"], required=set(influx["required"])),
        SIZES.format(
            min_slots=config_sizes.MIN_SLOTS,
            align=config_sizes.SEGMENT_ALIGN_BYTES // 2**20,
            example=_example(),
        ),
    ]
    return "\n".join(parts)


def _example() -> str:
    """Return the example, checked, with each position on one line."""
    config.from_dict(EXAMPLE, "example")
    lines = []
    for key, value in EXAMPLE.items():
        if key == "module_positions":
            positions = ",\n".join(f'    "{m}": {json.dumps(place)}' for m, place in value.items())
            lines.append(f'  "{key}": {{\n{positions}\n  }}')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}"


def _table(
    entries: dict[str, Any], with_default: bool = True, required: frozenset[str] | set[str] = frozenset()
) -> str:
    head = ["key", "type", "default", "meaning"] if with_default else ["key", "type", "meaning"]
    rows = [head, ["---"] * len(head)]
    for name, entry in entries.items():
        default = "mandatory" if name in required else _default(entry)
        cells = [f"`{name}`", _type(entry), default, entry["description"]]
        rows.append([cell.replace("|", "\\|") for cell in cells if with_default or cell is not default])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry:
        return "`{}`" if _type(entry) == "object" else ""
    return "not set" if entry["default"] is None else f"`{json.dumps(entry['default'])}`"


def _type(entry: dict[str, Any]) -> str:
    """Say in words what a value may be."""
    if "anyOf" in entry:
        return " or ".join(_type(option) for option in entry["anyOf"] if option.get("type") != "null")
    if "$ref" in entry:
        return "object"
    if "enum" in entry:
        return "one of " + ", ".join(f"`{json.dumps(value)}`" for value in entry["enum"])
    kind = {
        "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
        "object": "object", "array": "list",
    }[entry["type"]]  # fmt: skip
    if kind == "list" and "prefixItems" in entry:
        items = dict.fromkeys(_type(item) for item in entry["prefixItems"])
        kind = f"list of {entry['minItems']}: " + ", ".join(items)
    return kind + _limits(entry)


def _limits(entry: dict[str, Any]) -> str:
    words = [
        f"{text} {entry[key]}"
        for key, text in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "and below"),
        )
        if key in entry
    ]
    if "pattern" in entry:
        words.append(f"like `{entry['pattern']}`")
    return ", " + " ".join(words) if words else ""


if __name__ == "__main__":
    PAGE.write_text(render())

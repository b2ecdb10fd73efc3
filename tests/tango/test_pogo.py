"""The Pogo files are what the classes say today, in the structure that Pogo reads."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "pogo"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
CHILDREN = {
    "classes": ["description", "deviceProperties", "commands", "attributes", "states", "preferences"],
    "description": ["inheritances", "identification"],
    "deviceProperties": ["type", "status", "DefaultPropValue"],
    "commands": ["argin", "argout", "status"],
    "attributes": [
        "dataType", "changeEvent", "archiveEvent", "dataReadyEvent", "status", "properties",
        "enumLabels",
    ],
    "states": ["status"],
}  # fmt: skip
REPEATED = {"deviceProperties", "commands", "attributes", "states", "DefaultPropValue", "enumLabels"}
SCALARS = [
    "Boolean",
    "UChar",
    "Short",
    "UShort",
    "Int",
    "UInt",
    "Long",
    "ULong",
    "Float",
    "Double",
    "String",
    "State",
    "DevEncoded",
    "Enum",
]
ARRAYS = [
    f"{name}Array"
    for name in ["Char", "Short", "UShort", "Int", "UInt", "Long", "ULong", "Float", "Double", "String"]
]
TYPES = {
    "dataType": SCALARS,
    "type": ["Void", *SCALARS, *ARRAYS, *(name.replace("Array", "Vector") for name in ARRAYS)],
}


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.xmi"))


def test_the_files_are_what_the_classes_say() -> None:
    generator = runpy.run_path(str(FOLDER / "generate.py"))
    rendered = generator["render_all"]()
    assert {path.name for path in files()} == set(rendered)
    old = [name for name, content in rendered.items() if (FOLDER / name).read_bytes() != content]
    assert not old, f"{old} are old: run python pogo/generate.py"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_a_file_has_the_structure_that_pogo_reads(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.esrf.fr/tango/pogo/PogoDsl}PogoSystem"
    assert [child.attrib["name"] for child in root] == [path.stem]
    for node in root.iter():
        tags = [child.tag for child in node]
        if node.tag in CHILDREN:
            order = CHILDREN[node.tag]
            assert tags == sorted(tags, key=order.index), (node.tag, node.attrib)
            assert not [tag for tag in set(tags) - REPEATED if tags.count(tag) > 1]
            optional = {"deviceProperties", "DefaultPropValue", "enumLabels"}
            assert set(order) - optional <= set(tags), (node.tag, node.attrib)
        if node.tag in TYPES:
            name = node.attrib[XSI_TYPE].removeprefix("pogoDsl:").removesuffix("Type")
            assert name in TYPES[node.tag], node.attrib
    (top,) = root
    names = {tag: [node.attrib["name"] for node in top.findall(tag)] for tag in CHILDREN["classes"][1:5]}
    assert all(len(found) == len(set(found)) for found in names.values())
    assert {"State", "Status", "Start", "Stop", "Reset"} <= set(names["commands"])
    assert (path.parent / str(top.find("description").attrib["sourcePath"])).is_file()  # type: ignore[union-attr]


def test_alarm_limits_units_and_events_are_in_the_files() -> None:
    (top,) = ElementTree.parse(FOLDER / "StdDaqUdpReceiver.xmi").getroot()
    found = {node.attrib["name"]: node for node in top.findall("attributes")}
    buffer = found["receiveBufferBytes"].find("properties")
    assert buffer is not None
    assert buffer.attrib["unit"] == "bytes"
    limits = [node.find("properties").attrib["maxAlarm"] for node in found.values()]  # type: ignore[union-attr]
    assert "1" in limits
    event = found["rate"].find("changeEvent")
    assert event is not None
    assert event.attrib["fire"] == "true"

"""Write one .xmi file for each Tango class from the running classes: `python pogo/generate.py`."""

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import tango
from tango.server import device_property
from tango.test_context import MultiDeviceTestContext

HERE: Final = Path(__file__).resolve().parent
MODEL: Final = "http://www.esrf.fr/tango/pogo/PogoDsl"
XMI: Final = "http://www.omg.org/XMI"
XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
SCALARS: Final = {
    "DevVoid": "Void", "DevBoolean": "Boolean", "DevUChar": "UChar", "DevShort": "Short",
    "DevUShort": "UShort", "DevLong": "Int", "DevULong": "UInt", "DevLong64": "Long",
    "DevULong64": "ULong", "DevFloat": "Float", "DevDouble": "Double", "DevString": "String",
    "DevState": "State", "DevEncoded": "DevEncoded", "DevEnum": "Enum",
}  # fmt: skip
"""Tango's types as Pogo calls them: its Int has 32 bits and its Long 64."""
ARRAYS: Final = {
    "DevVarCharArray": "CharArray", "DevVarShortArray": "ShortArray", "DevVarUShortArray": "UShortArray",
    "DevVarLongArray": "IntArray", "DevVarULongArray": "UIntArray", "DevVarLong64Array": "LongArray",
    "DevVarULong64Array": "ULongArray", "DevVarFloatArray": "FloatArray",
    "DevVarDoubleArray": "DoubleArray", "DevVarStringArray": "StringArray",
}  # fmt: skip
STATES: Final = {
    "STANDBY": "Not running; Start runs it.",
    "RUNNING": "Working.",
    "ALARM": "Working, but it lost or damaged data lately; Status says what.",
    "FAULT": "Not working; Status says why and what to do.",
}
OWN: Final = {"abstract": "false", "inherited": "false", "concrete": "true", "concreteHere": "true"}
INHERITED: Final = {"abstract": "true", "inherited": "true", "concrete": "true"}
NOT_IN_POGO: Final = {"Init"}  # Tango's own; Pogo adds it by itself
NOT_GIVEN: Final = ("Not specified", "No unit", "No standard unit", "No display unit")
Node = ElementTree.Element


def classes() -> dict[str, type[tango.server.Device]]:
    """Return the Tango classes by name: those with a program in pyproject.toml."""
    scripts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["scripts"]
    found = {}
    for name, target in scripts.items():
        module = target.partition(":")[0]
        if module.startswith("tango_stddaq.devices."):
            found[name] = getattr(importlib.import_module(module), name)
    return found


def render_all() -> dict[str, bytes]:
    """Start a device of every class, ask it for its interface, and return the files by name."""
    known = classes()
    devices = {name: f"pogo/stddaq/{name.lower()}" for name in known}
    servers = [
        {"class": known[name], "devices": [{"name": device, "properties": {"AutoStart": "false"}}]}
        for name, device in devices.items()
    ]
    with MultiDeviceTestContext(servers, process=True, timeout=60) as context:
        return {
            f"{name}.xmi": _render(known[name], context.get_device(device))
            for name, device in devices.items()
        }


def _render(kind: type[tango.server.Device], proxy: tango.DeviceProxy) -> bytes:
    root = Node("pogoDsl:PogoSystem", {
        "xmi:version": "2.0", "xmlns:xmi": XMI, "xmlns:xsi": XSI, "xmlns:pogoDsl": MODEL,
    })  # fmt: skip
    top = _child(root, "classes", name=kind.__name__, pogoRevision="9.8")
    text = _one_line(kind.__doc__ or "")
    description = _child(
        top, "description", description=text, title=text.partition(".")[0],
        sourcePath=f"../{kind.__module__.replace('.', '/')}.py", language="PythonHL",
        filestogenerate="XMI   file", license="none", copyright="", hasMandatoryProperty="false",
        hasConcreteProperty="true", hasAbstractCommand="false", hasAbstractAttribute="false",
    )  # fmt: skip
    _child(description, "inheritances", classname="Device_Impl", sourcePath="")
    _child(
        description, "identification", contact="", author="", emailDomain="", classFamily="Acquisition",
        siteSpecific="", platform="Linux", bus="Not Applicable", manufacturer="none", reference="",
    )  # fmt: skip
    for name, prop in sorted(_properties(kind).items()):
        _property(top, name, prop)
    for info in sorted(proxy.command_list_query(), key=lambda info: info.cmd_name):
        if info.cmd_name not in NOT_IN_POGO:
            _command(top, info)
    for info in sorted(proxy.attribute_list_query_ex(), key=lambda info: info.name):
        if info.name not in ("State", "Status"):
            declared = kind.TangoClassClass.attr_list.get(info.name)
            _attribute(top, info, pushed=getattr(declared, "change_event_implemented", False))
    for state, meaning in STATES.items():
        _child(_child(top, "states", name=state, description=meaning), "status", **OWN)
    _child(top, "preferences", docHome="./doc_html", makefileHome="")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="ASCII", xml_declaration=True) + b"\n"


def _properties(kind: type) -> dict[str, device_property]:
    found: dict[str, device_property] = {}
    for base in reversed(kind.__mro__):
        found |= {k: v for k, v in vars(base).items() if isinstance(v, device_property)}
    return found


def _property(top: Node, name: str, prop: device_property) -> None:
    node = _child(top, "deviceProperties", name=name, description=_one_line(prop.doc or ""))
    tango_type = tango.CmdArgType.values[int(prop.dtype)].name
    default = prop.default_value
    if tango_type in SCALARS:
        _type(node, "type", SCALARS[tango_type])
        values = [] if default in (None, "") else [default]
    else:
        _type(node, "type", ARRAYS[tango_type].replace("Array", "Vector"))
        values = list(default or [])
    _child(node, "status", **OWN)
    for value in values:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        _child(node, "DefaultPropValue").text = text


def _command(top: Node, info: Any) -> None:
    inherited = info.cmd_name in ("State", "Status")
    method = f"dev_{info.cmd_name.lower()}" if inherited else info.cmd_name
    node = _child(
        top, "commands", name=info.cmd_name,
        description="" if inherited else _one_line(info.in_type_desc),
        execMethod=method, displayLevel=info.disp_level.name, polledPeriod="0",
    )  # fmt: skip
    for side, kind, text in (
        ("argin", info.in_type, info.in_type_desc), ("argout", info.out_type, info.out_type_desc),
    ):  # fmt: skip
        argument = _child(node, side, description=_one_line(text).replace("Uninitialised", ""))
        _type(argument, "type", {**SCALARS, "ConstDevString": "String", **ARRAYS}[kind.name])
    _child(node, "status", **(INHERITED if inherited else OWN))


def _attribute(top: Node, info: Any, pushed: bool) -> None:
    node = _child(
        top, "attributes", name=info.name, attType=info.data_format.name.capitalize(),
        rwType=info.writable.name, displayLevel=info.disp_level.name, polledPeriod="0",
        maxX=str(info.max_dim_x), maxY=str(info.max_dim_y), allocReadMember="false", isDynamic="false",
    )  # fmt: skip
    _type(node, "dataType", SCALARS[tango.CmdArgType.values[info.data_type].name])
    # The devices push these events themselves; Tango does not compare values for them.
    _child(node, "changeEvent", fire=str(pushed).lower(), libCheckCriteria="false")
    _child(node, "archiveEvent", fire="false", libCheckCriteria="false")
    _child(node, "dataReadyEvent", fire="false", libCheckCriteria="true")
    _child(node, "status", **OWN)

    def given(value: str) -> str:
        return (
            "" if value in ("Not specified", "No unit", "No standard unit", "No display unit") else value
        )

    _child(
        node, "properties", description=_one_line(info.description), label=info.label,
        unit=given(info.unit), standardUnit=given(info.standard_unit),
        displayUnit=given(info.display_unit), format=info.format, maxValue=given(info.max_value),
        minValue=given(info.min_value), maxAlarm=given(info.alarms.max_alarm),
        minAlarm=given(info.alarms.min_alarm), maxWarning=given(info.alarms.max_warning),
        minWarning=given(info.alarms.min_warning), deltaTime=given(info.alarms.delta_t),
        deltaValue=given(info.alarms.delta_val),
    )  # fmt: skip
    for label in info.enum_labels:
        _child(node, "enumLabels").text = label


def _child(parent: Node, tag: str, **attributes: str) -> Node:
    return ElementTree.SubElement(parent, tag, attributes)


def _type(parent: Node, tag: str, name: str) -> None:
    _child(parent, tag, **{"xsi:type": f"pogoDsl:{name}Type"})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Write the files, and remove those whose class is gone."""
    rendered = render_all()
    for old in HERE.glob("*.xmi"):
        if old.name not in rendered:
            old.unlink()
    for name, content in rendered.items():
        (HERE / name).write_bytes(content)
    sys.stdout.write(f"{len(rendered)} classes written to {HERE}\n")


if __name__ == "__main__":
    main()

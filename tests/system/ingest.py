"""The processors of an Elasticsearch ingest pipeline, as far as ours uses them, to test it without one.

Grok patterns become Python regular expressions: `%{NAME:field}` is the pattern NAME, kept in `field`.
"""

import copy
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

Document = dict[str, Any]


class IngestError(Exception):
    pass


class MissingFieldError(IngestError):
    pass


def get(document: Document, field: str) -> Any:
    value: Any = document
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise MissingFieldError(f"field [{field}] not present")
        value = value[part]
    return value


def put(document: Document, field: str, value: Any) -> None:
    *path, last = field.split(".")
    for part in path:
        document = document.setdefault(part, {})
    document[last] = value


def has(document: Document, field: str) -> bool:
    try:
        get(document, field)
    except MissingFieldError:
        return False
    return True


def fill(template: str, document: Document) -> str:
    return re.sub(
        r"\{\{\{(.+?)\}\}\}",
        lambda m: str(get(document, m[1])) if has(document, m[1]) else "",
        template,
    )


class Grok:
    """One grok pattern as a regular expression."""

    def __init__(self, pattern: str, definitions: dict[str, str]) -> None:
        self.fields: list[str] = []
        self._definitions = definitions
        self._compiled = re.compile(self._translate(pattern))

    def _translate(self, pattern: str) -> str:
        return re.sub(r"%\{(\w+)(?::([\w.@]+))?\}", self._group, pattern)

    def _group(self, found: re.Match[str]) -> str:
        number = len(self.fields)
        if found[2]:
            self.fields.append(found[2])
        inner = self._translate(self._definitions[found[1]])
        return f"(?P<g{number}>{inner})" if found[2] else f"(?:{inner})"

    def match(self, text: str) -> dict[str, str] | None:
        found = self._compiled.search(text)
        if found is None:
            return None
        groups = {field: found[f"g{number}"] for number, field in enumerate(self.fields)}
        return {field: value for field, value in groups.items() if value is not None}


def _set(options: Document, document: Document) -> None:
    if not options.get("override", True) and has(document, options["field"]):
        return
    if "copy_from" in options:
        put(document, options["field"], get(document, options["copy_from"]))
    else:
        put(document, options["field"], fill(options["value"], document))


def _append(options: Document, document: Document) -> None:
    before = get(document, options["field"]) if has(document, options["field"]) else []
    put(document, options["field"], [*before, options["value"]])


def _grok(options: Document, document: Document) -> None:
    text = get(document, options["field"])
    for pattern in options["patterns"]:
        found = Grok(pattern, options["pattern_definitions"]).match(text)
        if found is not None:
            for field, value in found.items():
                put(document, field, value)
            return
    raise IngestError("Provided Grok expressions do not match field value")


def _gsub(options: Document, document: Document) -> None:
    replacement = re.sub(r"\$(\d)", r"\\\1", options["replacement"])
    text = re.sub(options["pattern"], replacement, get(document, options["field"]))
    put(document, options["field"], text)


def _kv(options: Document, document: Document) -> None:
    for pair in re.split(options["field_split"], get(document, options["field"])):
        parts = re.split(options["value_split"], pair, maxsplit=1)
        if len(parts) != 2:
            raise IngestError(f"field [{options['field']}] does not contain value_split")
        put(document, f"{options['target_field']}.{parts[0]}", parts[1])


def _date(options: Document, document: Document) -> None:
    text = get(document, options["field"])
    (form,) = options["formats"]
    if form == "UNIX_MS":
        when = datetime.fromtimestamp(int(text) / 1000, UTC)
    else:
        assert form == "MM-dd HH:mm:ss.SSS"
        zone = fill(options["timezone"], document)
        offset = timedelta()
        if zone != "UTC":
            sign, hours, minutes = re.fullmatch(r"([+-])(\d\d):(\d\d)", zone).groups()
            offset = timedelta(hours=int(hours), minutes=int(minutes)) * (1 if sign == "+" else -1)
        year = datetime.now(UTC).year
        naive = datetime.strptime(f"{year}-{text}", "%Y-%m-%d %H:%M:%S.%f")
        when = naive.replace(tzinfo=timezone(offset))
    put(document, options["target_field"], when.astimezone(UTC).isoformat())


def _remove(options: Document, document: Document) -> None:
    for field in options["field"]:
        if has(document, field):
            *path, last = field.split(".")
            del (get(document, ".".join(path)) if path else document)[last]


PROCESSORS = {
    "set": _set, "append": _append, "grok": _grok, "gsub": _gsub, "kv": _kv, "date": _date,
    "remove": _remove,
}  # fmt: skip


def ingest(pipeline: Document, document: Document) -> Document:
    """Return what is stored of a document."""
    document = copy.deepcopy(document)
    try:
        _run(pipeline["processors"], document)
    except IngestError as error:
        document["_ingest"] = {"on_failure_message": str(error)}
        _run(pipeline["on_failure"], document)
        del document["_ingest"]
    return document


def _run(processors: list[Document], document: Document) -> None:
    for processor in processors:
        ((kind, options),) = processor.items()
        try:
            PROCESSORS[kind](options, document)
        except MissingFieldError:
            if not (options.get("ignore_missing") or options.get("ignore_failure")):
                raise
        except IngestError:
            if "on_failure" in options:
                _run(options["on_failure"], document)
            elif not options.get("ignore_failure"):
                raise

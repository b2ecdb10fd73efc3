"""How a set of modules is written: `7`, `0-15`, `0,2,5`."""

from collections.abc import Sequence

from tango_stddaq.errors import ConfigError


def module_label(modules: Sequence[int]) -> str:
    """Return a short name for a set of modules: `0-3`, `7`, `0,2,5`."""
    if len(modules) == 1:
        return str(modules[0])
    if list(modules) == list(range(modules[0], modules[-1] + 1)):
        return f"{modules[0]}-{modules[-1]}"
    return ",".join(str(module) for module in modules)


def parse_modules(text: str) -> tuple[int, ...] | None:
    """Read `7`, `0-15`, `0,2,5` or `all` (None).

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if text.strip() in ("all", ""):
        return None
    modules: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ConfigError(f"modules {text!r}: allowed are 7, 0-15, 0,2,5 or all")
        end = int(last or first)
        if end < int(first) or end - int(first) > 4096:
            raise ConfigError(f"modules {text!r}: {part.strip()!r} is not a range")
        modules.extend(range(int(first), end + 1))
    return tuple(dict.fromkeys(modules))

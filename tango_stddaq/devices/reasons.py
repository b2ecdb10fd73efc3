"""What a Tango error says, for a person: its own text, without the stack of origins."""

import tango


def first_line(error: tango.DevFailed) -> str:
    """Return the first line of the text."""
    return str(error.args[0].desc).strip().splitlines()[0]


def one_line(error: tango.DevFailed) -> str:
    """Return the whole text in one line: faults of several keys stand in a line each."""
    return " ".join(str(error.args[0].desc).split())

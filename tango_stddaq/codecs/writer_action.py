"""`WriterAction` and `WriterResponse`: the talk between the writer driver and its writers."""

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.model import Image

_RECEIVED_NS: Final = b"\xb0\x06"
"""Field 102 of `ImageMetadata`, a number."""
MAX_OVERWRITTEN: Final = 8
"""Ranges of ids in one response: more would not fit 512 bytes together with a reason."""
_MAX_REASON_BYTES: Final = 300


@dataclass(frozen=True, slots=True)
class CreateFile:
    """Create a file.

    Attributes
    ----------
    path
        Its whole name.
    writer_id
        User id that shall own it.
    overwrite
        Whether a file of that name is replaced.
    tell_of_failure
        Whether the writer shall send an unasked response at once when it cannot store an image, and one
        every now and then that says how far it is.

    The last two are additions of ours: existing writers do not know them, no existing driver sets them.
    """

    path: str
    writer_id: int = 0
    overwrite: bool = False
    tell_of_failure: bool = False


@dataclass(frozen=True, slots=True)
class RecordImage:
    """Store one image. Never answered."""

    image: Image


@dataclass(frozen=True, slots=True)
class ConfirmLastImage:
    """Answer once every image sent so far is in the file."""


@dataclass(frozen=True, slots=True)
class CloseFile:
    """Close the file."""


Action = CreateFile | RecordImage | ConfirmLastImage | CloseFile


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to everything but `RecordImage`.

    Attributes
    ----------
    n_written, n_overwritten
        Images stored, and images lost because their slot was overwritten; additions of ours, 0 from
        an existing writer.
    overwritten
        Those of them that the file does not name, as (first, last), both included; the latest few.
    unasked
        Whether it is no answer, but tells of a failure, or if `ok` how far the writer is.
    """

    ok: bool
    reason: str = ""
    n_written: int = 0
    n_overwritten: int = 0
    overwritten: tuple[tuple[int, int], ...] = ()
    unasked: bool = False


def encode(action: Action) -> bytes:
    """Serialize an action.

    Raises
    ------
    ValueError
        If it does not fit the 512 bytes that existing writers read.
    """
    message = pb.WriterAction()
    match action:
        case CreateFile(path, writer_id, overwrite, tell_of_failure):
            message.create_file.path = path
            message.create_file.writer_id = writer_id
            message.create_file.overwrite = overwrite
            message.create_file.tell_of_failure = tell_of_failure
        case RecordImage(image):
            message.record_image.image_metadata.CopyFrom(image_metadata.to_message(image))
        case ConfirmLastImage():
            message.confirm_last_image.SetInParent()
        case CloseFile():
            message.close_file.SetInParent()
    return _checked(message.SerializeToString())


def received_at(unix_ns: int) -> bytes:
    """Return the end of an `ImageMetadata` message that says when it was received.

    Fields of a message may come in any order, so it may simply follow the others.
    """
    return _RECEIVED_NS + _varint(unix_ns)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _checked(data: bytes) -> bytes:
    if len(data) > image_metadata.MAX_MESSAGE_BYTES:
        raise ValueError(
            f"a writer action of {len(data)} bytes; at most {image_metadata.MAX_MESSAGE_BYTES} are "
            "allowed (is the file name too long?)"
        )
    return data


def decode(data: bytes) -> Action:
    """Read an action.

    Raises
    ------
    ValueError
        If it is none.
    """
    action = parse(data)
    if isinstance(action, pb.ImageMetadata):
        return RecordImage(image_metadata.from_message(action))
    return action


def parse(data: bytes) -> "CreateFile | ConfirmLastImage | CloseFile | pb.ImageMetadata":
    """Read an action; an image to record stays a message. For those that take thousands a second.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        message = pb.WriterAction.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a WriterAction message of {len(data)} bytes") from error
    match message.WhichOneof("action"):
        case "create_file":
            create = message.create_file
            return CreateFile(create.path, create.writer_id, create.overwrite, create.tell_of_failure)
        case "record_image":
            image = message.record_image.image_metadata
            image_metadata.check(image)
            return image
        case "confirm_last_image":
            return ConfirmLastImage()
        case "close_file":
            return CloseFile()
        case _:
            raise ValueError("a WriterAction without an action")


def encode_response(response: Response) -> bytes:
    """Serialize a response; a long reason is cut to fit 512 bytes."""
    data: bytes = pb.WriterResponse(
        code=pb.SUCCESS if response.ok else pb.FAILURE,
        reason=response.reason.encode(errors="replace")[:_MAX_REASON_BYTES].decode(errors="ignore"),
        n_written=response.n_written,
        n_overwritten=response.n_overwritten,
        unasked=response.unasked,
        overwritten=[number for pair in response.overwritten[-MAX_OVERWRITTEN:] for number in pair],
    ).SerializeToString()
    return data


def decode_response(data: bytes) -> Response:
    """Read a response.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        message = pb.WriterResponse.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a WriterResponse message of {len(data)} bytes") from error
    numbers = list(message.overwritten)
    return Response(
        message.code == pb.SUCCESS,
        message.reason,
        message.n_written,
        message.n_overwritten,
        tuple(zip(numbers[::2], numbers[1::2], strict=False)),
        message.unasked,
    )

"""`WriterAction` and `WriterResponse`: the talk between the writer driver and its writers."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tango_stddaq.codecs import image_metadata
from tango_stddaq.codecs.pb import std_daq_protocol_pb2 as pb
from tango_stddaq.model import Image


@dataclass(frozen=True, slots=True)
class CreateFile:
    """Create a file; `path` is its whole name, `writer_id` the user id that shall own it."""

    path: str
    writer_id: int = 0


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
    """

    ok: bool
    reason: str = ""
    n_written: int = 0
    n_overwritten: int = 0


def encode(action: Action) -> bytes:
    """Serialize an action.

    Raises
    ------
    ValueError
        If it does not fit the 512 bytes that existing writers read.
    """
    message = pb.WriterAction()
    match action:
        case CreateFile(path, writer_id):
            message.create_file.path = path
            message.create_file.writer_id = writer_id
        case RecordImage(image):
            message.record_image.image_metadata.CopyFrom(image_metadata.to_message(image))
        case ConfirmLastImage():
            message.confirm_last_image.SetInParent()
        case CloseFile():
            message.close_file.SetInParent()
    data: bytes = message.SerializeToString()
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
    try:
        message = pb.WriterAction.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a WriterAction message of {len(data)} bytes") from error
    match message.WhichOneof("action"):
        case "create_file":
            return CreateFile(message.create_file.path, message.create_file.writer_id)
        case "record_image":
            return RecordImage(image_metadata.from_message(message.record_image.image_metadata))
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
        reason=response.reason.encode(errors="replace")[:400].decode(errors="ignore"),
        n_written=response.n_written,
        n_overwritten=response.n_overwritten,
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
    return Response(message.code == pb.SUCCESS, message.reason, message.n_written, message.n_overwritten)

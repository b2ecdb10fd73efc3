"""Whether a web client may come in."""

import secrets
from collections.abc import Mapping
from typing import Final

HINT: Final = "a token is needed: send the header `Authorization: Bearer TOKEN`"


def is_allowed(headers: Mapping[str, str], token: str) -> bool:
    """Return whether a request's headers hold the token; "" lets everybody in.

    It takes the same time for all wrong ones.
    """
    given = headers.get("Authorization", "").removeprefix("Bearer ").strip()
    return not token or secrets.compare_digest(given.encode(errors="replace"), token.encode())

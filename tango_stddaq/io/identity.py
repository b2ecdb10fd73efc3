"""Create files as another user: one thread gets another identity in the eyes of file systems.

glibc's `seteuid` and `setgroups` change all threads of a process. Linux itself keeps identities per
thread: `setfsuid` and `setfsgid` change that of the calling one, and the bare system call does so for
supplementary groups. Nothing but access to files changes.
"""

import ctypes
import os
import platform
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tango_stddaq.errors import FileError

_SYS_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159}
_UNCHANGED: Final = 2**32 - 1
"""An id that nobody has: the call changes nothing and returns the present one."""
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def as_user(user_id: int | None) -> Iterator[None]:
    """Open, create and remove files as `user_id` in this thread; None changes nothing.

    Raises
    ------
    FileError
        If the user is unknown or is root, or if this process may not take other identities.
    """
    if user_id is None:
        yield
        return
    try:
        user = pwd.getpwuid(user_id)
    except (KeyError, OverflowError):
        raise FileError(f"writer_user_id {user_id}: there is no such user on this machine") from None
    if user_id <= 0:
        raise FileError("writer_user_id 0: files are not created as root; give the experiment's user")
    number = _SYS_SETGROUPS.get(platform.machine())
    if number is None:
        raise FileError(f"switch_user_active: is not available on {platform.machine()}")
    before = (_libc.setfsuid(_UNCHANGED), _libc.setfsgid(_UNCHANGED), os.getgroups())
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    try:
        _become(number, user_id, user.pw_gid, groups)
        yield
    finally:
        _become(number, *before, force=True)


def _become(number: int, user_id: int, group_id: int, groups: list[int], force: bool = False) -> None:
    """Change the identity; the user goes last and comes first, as only root may change the rest."""
    if force:
        _libc.setfsuid(user_id)
    array = (ctypes.c_uint32 * len(groups))(*groups)
    refused = _libc.syscall(number, len(groups), array) != 0
    _libc.setfsgid(group_id)
    if not force:
        _libc.setfsuid(user_id)
    found = (_libc.setfsuid(_UNCHANGED), _libc.setfsgid(_UNCHANGED))
    if not force and (refused or found != (user_id, group_id)):
        raise FileError(
            f"writer_user_id {user_id}: user {os.geteuid()} may not create files as another one; "
            "run the writers with the capabilities CAP_SETUID and CAP_SETGID, or set "
            "switch_user_active to false"
        )

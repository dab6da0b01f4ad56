"""Puts a function of a test before one of a real PKCS#11 library: to count its calls, to delay them, to break them.

A library gives its callers a table of functions (`C_GetFunctionList`). The table is replaced entry by entry; all else
stays the library's own.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

#: Name -> place in CK_FUNCTION_LIST (PKCS#11 2.40, A) and number of arguments; each is a word or a pointer.
_FUNCTIONS = {
    "C_Initialize": (0, 1),
    "C_Finalize": (1, 1),
    "C_GetSlotList": (4, 3),
    "C_GetMechanismList": (7, 3),
    "C_Login": (18, 4),
    "C_Logout": (19, 1),
    "C_FindObjectsInit": (26, 3),
    "C_EncryptInit": (29, 3),
    "C_Encrypt": (30, 5),
    "C_DecryptInit": (33, 3),
    "C_Decrypt": (34, 5),
}
CKR_GENERAL_ERROR = 0x5
CKR_DEVICE_ERROR = 0x30
CKR_MECHANISM_PARAM_INVALID = 0x71
CKR_PIN_EXPIRED = 0xA3
CKR_PIN_LOCKED = 0xA4
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_USER_NOT_LOGGED_IN = 0x101
#: Of a vendor: python-pkcs11 knows no class for it.
CKR_VENDOR_DEFINED = 0x80000001

Call = Callable[..., int]


class GCMParameters(ctypes.Structure):
    """CK_GCM_PARAMS."""

    _fields_ = (
        ("iv", ctypes.c_void_p),
        ("iv_size", ctypes.c_ulong),
        ("iv_bits", ctypes.c_ulong),
        ("aad", ctypes.c_void_p),
        ("aad_size", ctypes.c_ulong),
        ("tag_bits", ctypes.c_ulong),
    )


class _Mechanism(ctypes.Structure):
    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("parameter", ctypes.POINTER(GCMParameters)),
        ("parameter_size", ctypes.c_ulong),
    )


def gcm_parameters(mechanism: int) -> GCMParameters:
    """Return what a CK_MECHANISM at an address points to; a change of it is seen by the library."""
    parameters: GCMParameters = _Mechanism.from_address(mechanism).parameter.contents
    return parameters


@contextlib.contextmanager
def before(module: str, name: str, replacement: Callable[..., int]) -> Iterator[list[tuple[int, ...]]]:
    """Have `replacement(real, *arguments)` called in place of a function, and yield the arguments of all calls."""
    place, count = _FUNCTIONS[name]
    prototype = ctypes.CFUNCTYPE(ctypes.c_ulong, *[ctypes.c_size_t] * count)
    slot = ctypes.c_void_p.from_address(_table(module) + ctypes.sizeof(ctypes.c_void_p) * (place + 1))
    address = slot.value
    real: Any = prototype(address or 0)
    calls: list[tuple[int, ...]] = []

    def called(*arguments: int) -> int:
        calls.append(arguments)
        return replacement(real, *arguments)

    callback = prototype(called)
    slot.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield calls
    finally:
        slot.value = address


def counted(real: Call, *arguments: int) -> int:
    """Do what the library does."""
    return real(*arguments)


def failing(code: int) -> Call:
    """Return a replacement that fails with a code."""
    return lambda _real, *_arguments: code


def failing_once(code: int) -> Call:
    """Return a replacement that fails with a code, but for the first call only."""
    codes = [code]
    return lambda real, *arguments: codes.pop() if codes else real(*arguments)


def _table(module: str) -> int:
    address = ctypes.c_void_p()
    library = ctypes.CDLL(module)
    library.C_GetFunctionList.restype = ctypes.c_ulong
    if library.C_GetFunctionList(ctypes.byref(address)) or address.value is None:
        raise OSError(f"{module} gives no table of functions")
    return address.value

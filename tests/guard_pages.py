"""A pytest plugin: what kernels get lies at the very edge of memory they may touch.

With ``-p tests.guard_pages`` each array that a test makes a buffer of ends where
its memory ends, and one byte further is a fault, which ends the process. It
begins there with ``GUARD=begin``. With ``GUARD=inside`` its last bytes are beyond:
if that is no fault, then buffers are copied and the other two show nothing.
"""

import ctypes
import mmap
import os

import numpy as np
import pytest
from max.driver import Buffer

MODE = os.environ.get("GUARD", "end")
PAGE, PROT_NONE = mmap.PAGESIZE, 0
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array):
    """Returns a copy of an array, in memory between two pages without access.

    That memory is never given back.
    """
    pages = -(-array.nbytes // PAGE)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
    end = (pages + 1) * PAGE
    at = PAGE if MODE == "begin" else end - array.nbytes
    if MODE == "inside":
        at += min(array.nbytes, array.itemsize)
    copy = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    for page in (0, end):
        if _protect(memory.ctypes.data + page, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return copy


@pytest.fixture(autouse=True, scope="session")
def buffers_are_guarded():
    plain = Buffer.from_numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffer, "from_numpy", lambda array: plain(guarded(array)))
        yield

"""Huge pages for large results on the CPU.

glibc takes blocks from 32 MiB on from the system and gives them back when they are freed, and the system clears each
new page as it is first written to. In pages of 4 KiB that takes several times as long as a pass over the block; in
pages of 2 MiB it does not. Linux only, and only where it grants huge pages to those who ask (transparent_hugepage =
madvise; with "always" it gives them by itself). The hint is for the block alone. ATU_HUGE_PAGES=0 in the environment:
no hints.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

from torch import Tensor

LARGE = 1 << 22  # bytes of a result from which on the hint pays for its call
_HINT = getattr(mmap, "MADV_HUGEPAGE", None)


def _find() -> Callable[..., int] | None:
    if _HINT is None or os.environ.get("ATU_HUGE_PAGES") == "0":
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise = _find()


def in_huge_pages(t: Tensor) -> Tensor:
    """t, which was just allocated and not yet written to; where it is large, its pages will be huge ones."""
    if _madvise is None or not t.is_cpu or t.nbytes < LARGE:
        return t
    begin = -(-t.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (t.data_ptr() + t.nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(begin, size, _HINT)  # a hint: whether it is taken changes no result
    return t

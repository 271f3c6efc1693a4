"""Imported before skylevel's kernels, it leaves the C library's ways with freed memory as they are."""

from skylevel import memory

memory.keep_freed_memory = lambda: False


def here() -> None:
    """Importing this module did it."""

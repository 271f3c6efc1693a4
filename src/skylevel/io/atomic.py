"""Output files appear whole or not at all."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Write beside `output`, and take its place when the block ends without an error.

    Parameters
    ----------
    output : Path
        The file to write; its folder exists. What stood there stays until the new file is whole.

    Yields
    ------
    Path
        The name to write to, in the same folder, so that the renaming is one step of the file system. It is removed
        when the block raises, whatever it raises.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written.
    """
    # Not tempfile: its files are readable by their owner alone, and the renamed output would stay so.
    temporary = output.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

"""Files by path or URL: a remote input is fetched while it is read, a remote output is sent once it is whole."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from skylevel.errors import SkylevelError, UnreadableFrameError
from skylevel.io.atomic import remove_asides


def is_remote(url: str) -> bool:
    """Whether this names a file by URL."""
    return "://" in url


def file_system(url: str) -> tuple[Any, str]:
    """The file system behind a path or URL, and the path there.

    It remembers no listing: what is asked for may have been written by another process since.
    """
    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files, path


@contextmanager
def local_input(url: str) -> Iterator[Path]:
    """A path at which an input can be read; a remote one is fetched to a temporary file.

    What is raised about that file within the block names the URL.

    Raises
    ------
    UnreadableFrameError
        The URL cannot be fetched.
    """
    if not is_remote(url):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, url.rsplit("/", 1)[-1])
        try:
            files, remote = file_system(url)
            files.get_file(remote, str(path))
        except (OSError, ValueError) as error:
            raise UnreadableFrameError(f"{url}: cannot be fetched: {error}") from error
        try:
            yield path
        except SkylevelError as error:
            raise type(error)(str(error).replace(str(path), url)) from error


@contextmanager
def local_start(url: str, n_bytes: int) -> Iterator[Path]:
    """A path at which the start of a remote input can be read; zeros stand for the rest of it.

    Raises
    ------
    UnreadableFrameError
        The URL cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, url.rsplit("/", 1)[-1])
        try:
            files, remote = file_system(url)
            path.write_bytes(files.cat_file(remote, start=0, end=n_bytes))
            os.truncate(path, int(files.size(remote) or path.stat().st_size))
        except (OSError, ValueError) as error:
            raise UnreadableFrameError(f"{url}: cannot be fetched: {error}") from error
        yield path


@contextmanager
def local_output(url: str) -> Iterator[Path]:
    """A path at which to write an output; a remote one is sent when the block ends without an error."""
    if not is_remote(url):
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, url.rsplit("/", 1)[-1])
        yield path
        files, remote = file_system(url)
        # Not copied into an open remote file: closing that would make half a file whole.
        files.put_file(str(path), remote)


def remove_leftovers(urls: Iterable[str]) -> None:
    """Remove what workers that were killed left on the way to these outputs; nothing may be writing them."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in (Path(url) for url in urls if not is_remote(url)):
        names[path.parent].add(path.name)
    for folder in names:
        remove_asides(folder, names[folder])


def output_exists(url: str) -> bool:
    """Whether an output is there."""
    files, path = file_system(url)
    return bool(files.exists(path))

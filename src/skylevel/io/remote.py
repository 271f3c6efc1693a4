"""Files by path or URL: a remote input is fetched while it is read, a remote output is sent once it is whole."""

import errno
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from skylevel.errors import OutputError, SettingsError, SkylevelError, UnreadableFrameError
from skylevel.io.atomic import remove_asides
from skylevel.io.names import safe_component
from skylevel.io.urls import is_remote, public_url, url_name, without_secrets

# The package that each protocol needs.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "gcs": "gcsfs",
             "abfs": "adlfs", "az": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}  # fmt: skip


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system behind a path or URL, and the path there.

    It remembers no listing: what is asked for may have been written by another process since.

    Raises
    ------
    SettingsError
        The protocol is unknown, or its package is not installed. The caller names the URL.
    """
    if not is_remote(url):
        # A name may hold what fsspec takes for a chain of file systems.
        return fsspec.filesystem("file"), str(Path(os.path.normpath(Path(url).expanduser().absolute())))
    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        protocol = url.split("://", 1)[0].split("::")[-1]
        package = _PACKAGES.get(protocol, f"fsspec[{protocol}]")
        raise SettingsError(f"{protocol}:// needs a package that is not installed: pip install '{package}'") from error
    except ValueError as error:
        raise SettingsError(without_secrets(str(error), url)) from _told(error, url)
    return files, path


def _told(error: Exception, url: str) -> OSError:
    """Return what a file system said, as a cause that may be shown; whether trying again may help is kept."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such file")
    number = getattr(error, "errno", None)
    text = without_secrets(getattr(error, "strerror", None) or str(error), url) or type(error).__name__
    return OSError(number, text) if isinstance(number, int) else OSError(text)


def _ask(url: str, action: Callable[[Any, str], None], kind: type[SkylevelError], failed: str) -> None:
    """Do something on the file system of a URL; what that raises becomes an error that names it.

    Notes
    -----
    It is raised behind the handler: as its context, the file system's own error would go along, with the whole URL.
    """
    cause: OSError | None = None
    try:
        action(*file_system(url))
        return
    except SettingsError as error:
        told: SkylevelError = SettingsError(f"{public_url(url)}: {error}")
    except Exception as error:
        # Each protocol has errors of its own.
        cause = _told(error, url)
        told = kind(f"{public_url(url)}: {failed}: {cause.strerror or cause}")
    raise told from cause


def is_there(url: str) -> bool:
    """Return whether a file is there; one whose server does not tell is taken to be.

    Of a web address what was signed on to it is not kept, without which a server may know no such file.
    """
    if not is_remote(url):
        # Path.exists raises where a folder may not be looked into.
        return os.path.exists(url)  # noqa: PTH110
    if url.startswith(("http://", "https://")):
        return True
    with suppress(Exception):
        files, path = file_system(url)
        try:
            files.info(path)
        except FileNotFoundError:
            return False
    return True


@contextmanager
def local_input(url: str) -> Iterator[Path]:
    """Give a path at which an input can be read; a remote one is fetched to a temporary file.

    What is raised about that file within the block names the URL.

    Raises
    ------
    UnreadableFrameError
        The URL cannot be fetched.
    SettingsError
        As `file_system`.
    """
    if not is_remote(url):
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, safe_component(url_name(url)))
        _ask(url, lambda files, remote: files.get_file(remote, str(path)), UnreadableFrameError, "cannot be fetched")
        try:
            yield path
        except SkylevelError as error:
            raise type(error)(str(error).replace(str(path), public_url(url))) from error


@contextmanager
def local_start(url: str, n_bytes: int) -> Iterator[Path]:
    """Give a path at which the start of a remote input can be read; zeros stand for the rest of it.

    Raises
    ------
    UnreadableFrameError
        The URL cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, safe_component(url_name(url)))

        def fetch(files: Any, remote: str) -> None:
            path.write_bytes(files.cat_file(remote, start=0, end=n_bytes))
            os.truncate(path, int(files.size(remote) or path.stat().st_size))

        _ask(url, fetch, UnreadableFrameError, "cannot be fetched")
        yield path


@contextmanager
def local_output(url: str) -> Iterator[Path]:
    """Give a path at which to write an output; a remote one is sent when the block ends without an error.

    Raises
    ------
    OutputError
        The output cannot be sent.
    """
    if not is_remote(url):
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="skylevel-") as folder:
        path = Path(folder, safe_component(url_name(url)))
        yield path
        # Not copied into an open remote file: closing that would make half a file whole.
        _ask(url, lambda files, remote: files.put_file(str(path), remote), OutputError, "cannot be sent")


def remove_leftovers(urls: Iterable[str]) -> None:
    """Remove what workers that were killed left on the way to these outputs; nothing may be writing them."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in (Path(url) for url in urls if not is_remote(url)):
        names[path.parent].add(path.name)
    for folder in names:
        remove_asides(folder, names[folder])


def output_size(url: str) -> int | None:
    """Return the bytes of an output; None where it is not there."""
    files, path = file_system(url)
    try:
        return int(files.size(path) or 0) if files.isfile(path) else None
    except FileNotFoundError:
        return None

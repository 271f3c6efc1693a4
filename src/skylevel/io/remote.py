"""Files by path or URL: a remote input is fetched while it is read, a remote output is sent once it is whole.

What a URL gives away (user, password, signature) is for its server alone: no message of this module holds it.
"""

import errno
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import fsspec

from skylevel.errors import OutputError, SettingsError, SkylevelError, UnreadableFrameError
from skylevel.io.atomic import remove_asides
from skylevel.io.names import printable, safe_component

# Fields of a query that say which file is meant, as archives use them. Any other may be a key, whatever its name.
_PUBLIC_FIELDS = {"uri", "file", "filename", "name", "path", "product", "dataset", "id", "version", "format"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)\]]+")
# What each protocol's package is called, and what brings it.
_PACKAGES = {"s3": "skylevel[s3]", "s3a": "skylevel[s3]", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs",
             "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}  # fmt: skip


def is_remote(url: str) -> bool:
    """Return whether this names a file by URL."""
    return "://" in url


def public_url(url: str) -> str:
    """A URL as it may be shown and stored: without user, password and fragment, and of its query what names a file.

    A path stays as it is. What is left may not suffice to fetch the file.
    """
    return "::".join(_public_link(link) for link in url.split("::")) if is_remote(url) else url


def _public_link(link: str) -> str:
    """One link of a chained URL."""
    if not is_remote(link):
        return link
    scheme, rest = link.split("://", 1)
    # Not urlsplit: it refuses some hosts that a file system takes.
    rest, _, query = rest.partition("#")[0].partition("?")
    host, slash, path = rest.partition("/")
    fields = [(name, value) for name, value in parse_qsl(query) if name.lower() in _PUBLIC_FIELDS]
    kept = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in fields)
    return f"{scheme}://{host.rsplit('@', 1)[-1]}{slash}{path}" + (f"?{kept}" if kept else "")


def url_name(url: str) -> str:
    """Return the name of the file behind a path or URL, whatever is signed on to it; it may be empty, or no safe name.

    An archive's download address names its file in the query (``.../file?uri=mast:JWST/product/jw..._cal.fits``).
    """
    if not is_remote(url):
        return url.rsplit("/", 1)[-1]
    public = public_url(url.rsplit("::", 1)[0] if "::" in url and not is_remote(url.rsplit("::", 1)[-1]) else url)
    path, _, query = public.partition("?")
    name = unquote(path.split("://", 1)[-1].partition("/")[2].rsplit("/", 1)[-1])
    named = [value.replace(":", "/").rsplit("/", 1)[-1] for _, value in parse_qsl(query)]
    return next((value for value in named if "." in value and "." not in name), name)


def without_secrets(text: str, url: str = "") -> str:
    """Return a message on one line, without what any URL in it, or the given one, gives away."""
    for secret in _secrets(url):
        text = text.replace(secret, "...")
    return printable(" ".join(_URL.sub(lambda found: public_url(found.group()), text).split()))


def _secrets(url: str) -> list[str]:
    """Texts of a URL that only its server is to know, the longest first."""
    found: list[str] = []
    for link in url.split("::"):
        try:
            parts = urlsplit(link)
        except ValueError:
            continue
        user = parts.netloc.rpartition("@")[0]
        fields = [value for name, value in parse_qsl(parts.query) if name.lower() not in _PUBLIC_FIELDS]
        found += [user, *user.split(":"), *fields, *map(quote, fields)]
    # Shorter ones are words of any message.
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)


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
        try:
            files, remote = file_system(url)
            files.get_file(remote, str(path))
        except SettingsError as error:
            raise SettingsError(f"{public_url(url)}: {error}") from error
        except Exception as error:
            # Each protocol has errors of its own.
            cause = _told(error, url)
            raise UnreadableFrameError(f"{public_url(url)}: cannot be fetched: {cause.strerror or cause}") from cause
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
        try:
            files, remote = file_system(url)
            # Not copied into an open remote file: closing that would make half a file whole.
            files.put_file(str(path), remote)
        except SettingsError as error:
            raise SettingsError(f"{public_url(url)}: {error}") from error
        except Exception as error:
            # As in `local_input`.
            cause = _told(error, url)
            raise OutputError(f"{public_url(url)}: cannot be sent: {cause.strerror or cause}") from cause


def remove_leftovers(urls: Iterable[str]) -> None:
    """Remove what workers that were killed left on the way to these outputs; nothing may be writing them."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in (Path(url) for url in urls if not is_remote(url)):
        names[path.parent].add(path.name)
    for folder in names:
        remove_asides(folder, names[folder])


def output_exists(url: str) -> bool:
    """Return whether an output is there."""
    files, path = file_system(url)
    return bool(files.exists(path))

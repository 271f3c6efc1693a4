"""URLs as text: what of them may be shown and stored.

What a URL gives away (user, password, signature) is for its server alone: no message, store, log or header holds it.
"""

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from skylevel.io.names import printable

# Fields of a query that say which file is meant, as archives use them. Any other may be a key, whatever its name.
_PUBLIC_FIELDS = {"uri", "file", "filename", "name", "path", "product", "dataset", "id", "version", "format"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)\]]+")

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


def shown(text: str) -> str:
    """Return a line for terminal and log: what it holds of URLs is public, and nothing in it acts on a terminal."""
    return printable(_URL.sub(lambda found: public_url(found.group()), text))


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

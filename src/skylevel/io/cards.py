"""Values of header cards, of which any may be damaged, and headers made legal before they are written again."""

import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from astropy import log
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from skylevel.errors import UnreadableFrameError

# Keywords whose cards have no value (FITS standard 4.0, section 4.1.2).
_COMMENTARY = ("COMMENT ", "HISTORY ", "        ", "CONTINUE")
_KEYWORD = re.compile(r"[A-Z0-9_-]* *\Z")
# Of which kind the standard wants the value of a card that readers look at to be.
_KINDS = {"EXTNAME": str, "EXTVER": int, "EXTLEVEL": int, "BLANK": int}
_AXIS = re.compile(r"NAXIS\d+\Z")
# Those of an image extension that leaves them out.
_DEFAULTS = {"PCOUNT": 0, "GCOUNT": 1}
_WARNINGS = threading.RLock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep astropy from reporting each thing it brings into the standard's form: nothing for the user to do.

    One thread at a time: Python's warning filters and astropy's log are the whole process's.
    """
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        was_disabled, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = was_disabled


def read_header(text: bytes) -> fits.Header:
    """A header as astropy has it, whatever its cards look like: they are looked at one by one, when they are asked for.

    Only keywords are read here.
    """
    with without_warnings():
        return fits.Header.fromstring(text)


def first_value(keywords: Sequence[str], headers: Sequence[fits.Header]) -> Any:
    """Find the first value there is; a card without a value, or one that cannot be read, counts as absent."""
    found = (_value(header, keyword) for keyword in keywords for header in headers if keyword in header)
    return next((value for value in found if value is not None), None)


def first_facts(
    table: Mapping[str, tuple[Callable[[Any], Any], Sequence[str]]], headers: Sequence[fits.Header]
) -> dict[str, Any]:
    """Return what headers tell, by name; what they do not, or not as it should be, is left out.

    Parameters
    ----------
    table : mapping of str to (type, sequence of str)
        The kind of each value, and the cards that may have it, the first first.
    headers : sequence of Header

    Returns
    -------
    dict
        Numbers are finite: no output, store or plan can hold another.
    """
    told = {name: _converted(kind, first_value(keywords, headers)) for name, (kind, keywords) in table.items()}
    return {name: value for name, value in told.items() if value is not None}


def _converted(kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        made = None if value is None else kind(value)
    except (TypeError, ValueError, OverflowError):
        # Such as the text N/A where a number is due.
        return None
    return None if isinstance(made, float) and not math.isfinite(made) else made


def require_legible(keywords: Sequence[str], headers: Sequence[fits.Header], path: str) -> None:
    """Refuse a file one of whose cards is there and cannot be read.

    Raises
    ------
    UnreadableFrameError
        With the card.
    """
    for header in headers:
        for keyword in keywords:
            if keyword in header and _value(header, keyword, damaged=_DAMAGED) is _DAMAGED:
                raise UnreadableFrameError(f"{path}: its header is damaged: the value of {keyword} cannot be read")


_DAMAGED = object()


def _value(header: fits.Header, keyword: str, damaged: object = None) -> Any:
    try:
        with without_warnings():
            value = header[keyword]
    except Exception:
        # astropy has an error of its own for each kind of damage.
        return damaged
    return None if isinstance(value, fits.card.Undefined) else value


def legal_header(text: bytes | fits.Header) -> fits.Header:
    """Read a header to be written again: what is damaged in it becomes legal.

    A value that astropy can tell is written as it should be; a card whose value nobody can tell becomes a COMMENT with
    its text. A sound header stays as it is.
    """
    with without_warnings():
        header = fits.Header.fromstring(text) if isinstance(text, bytes) else text.copy()
        # From the end, so that the places of those that come before stay.
        for i in reversed(range(len(header))):
            card = header.cards[i]
            if not _is_legal(card):
                illegible = ascii_text(_image(card)).rstrip()
                del header[i]
                header.insert(i, ("COMMENT", illegible))
        return _in_order(header)


def _in_order(header: fits.Header) -> fits.Header:
    """Bring the cards that say what an HDU is to where the standard wants them: first, each once, and complete."""
    axes = [f"NAXIS{i + 1}" for i in range(header.get("NAXIS", 0))]
    for keyword in set(filter(_AXIS.match, header)).difference(axes):
        header.remove(keyword, remove_all=True)
    is_extension = "XTENSION" in header
    first = ["XTENSION" if is_extension else "SIMPLE", "BITPIX", "NAXIS", *axes]
    first += ["PCOUNT", "GCOUNT"] if is_extension else []
    found = list(header)
    if found[: len(first)] == first and all(found.count(keyword) == 1 for keyword in first):
        return header
    ordered = fits.Header([(keyword, header.get(keyword, _DEFAULTS.get(keyword))) for keyword in first])
    for keyword in first:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    ordered.extend(header.cards, strip=False)
    return ordered


def _is_legal(card: fits.Card) -> bool:
    try:
        # Before it is fixed: astropy makes a text of any value that it cannot tell.
        is_of_its_kind = isinstance(card.value, _KINDS.get(card.keyword, object))
        card.verify("silentfix")
    except Exception:
        # As in `_value`.
        return False
    image = _image(card)
    return is_of_its_kind and bool(_KEYWORD.match(image[:8])) and _is_told(image)


def _is_told(image: str) -> bool:
    """Return whether a card says what is its value, if anything. Of any other, readers make what they like."""
    if image.startswith("HIERARCH "):
        return "=" in image
    return image[8:10] == "= " or image.startswith(_COMMENTARY)


def _image(card: fits.Card) -> str:
    try:
        return str(card.image)
    except Exception:
        return str(card.rawkeyword)


def ascii_text(text: str) -> str:
    """Reduce text to what a FITS header can hold: printable ASCII, with ``?`` for anything else."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)

"""Text from outside: names of files and cards of headers, made safe as one component of a path, or to be shown."""

import hashlib
import re
import unicodedata

# What a name that had to be changed ends with. A name that ends so by itself is changed too: no two names meet.
_MARK = re.compile(r"~[0-9a-f]{16}\Z")
# A slash parts a path, a backslash does in Zarr's and on Windows; "::" chains file systems in fsspec.
_UNSAFE = re.compile(r"[/\\]|::|[*?<>|\"]")
# Zarr keeps these for itself.
_RESERVED = re.compile(r"zarr\.json\Z|\.|__")


def safe_component(text: str, *, limit: int = 100) -> str:
    """Turn any text into a name that is one component of a path, here and in any store.

    Parameters
    ----------
    text : str
        The base name of a file, or a header's text, as Python has it: bytes that are not UTF-8 as surrogates.
    limit : int
        Bytes that the name may have in UTF-8; at least 32.

    Returns
    -------
    str
        `text` itself where that is an ordinary name. Else what can be kept of it, and 16 digits of its SHA-256: never
        empty, hidden or a path, and another for every other text.

    Notes
    -----
    To be applied once, to the text from outside: a name that looks as if it had been made safe is changed again.
    """
    if _is_ordinary(text, limit):
        return text
    suffix = "~" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    kept = "".join(c if _is_harmless(c) else "_" for c in unicodedata.normalize("NFC", text))
    kept = re.sub(r"\A[._~ ]+", "_", _UNSAFE.sub("_", kept))
    # Cut between characters, not within one's bytes.
    kept = kept.encode()[: limit - len(suffix)].decode(errors="ignore")
    return (kept.rstrip(" .") or "_") + suffix


def is_safe_component(text: object) -> bool:
    """Return whether this is a name as `safe_component` gives them: of a path it is one component, and harmless."""
    if not isinstance(text, str) or not text or text[0] in " ~" or text[-1] in " .":
        return False
    if _RESERVED.match(text) or _UNSAFE.search(text) or not all(map(_is_harmless, text)):
        return False
    return len(text.encode()) <= 255


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, as people say it: 1 exposure, 2 exposures."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _is_ordinary(text: str, limit: int) -> bool:
    if not text or _RESERVED.match(text) or _UNSAFE.search(text) or _MARK.search(text):
        return False
    if text != text.strip(" ") or text.startswith("~") or text.endswith("."):
        return False
    return all(map(_is_harmless, text)) and unicodedata.is_normalized("NFC", text) and len(text.encode()) <= limit


def _is_harmless(character: str) -> bool:
    # Python's printable leaves out controls, formats (bidirectional marks among them), surrogates and unassigned.
    return character.isprintable()


def printable(text: object, *, limit: int | None = None, encoding: str = "utf-8") -> str:
    r"""Text from outside on one line, without anything that a terminal or a log would act on.

    Parameters
    ----------
    text : object
        Its `str` is shown; bytes of a name that are no UTF-8 may stand in it as surrogates.
    limit : int, optional
        Characters to show at the most; a cut is marked by an ellipsis.
    encoding : str
        Of where it is shown; what that cannot hold is escaped too.

    Returns
    -------
    str
        Controls, escape sequences, line ends and marks of direction as ``\x1b`` or ``\u202e``; a byte that is no
        UTF-8 as ``\xff``; all else as it is.
    """
    shown = "".join(c if _is_harmless(c) else _escaped(c) for c in str(text))
    if limit is not None and len(shown) > limit:
        shown = shown[: max(limit - 3, 0)] + "..."
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # The byte that os.fsdecode could not read.
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

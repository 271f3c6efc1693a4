"""What was done to an exposure before: levelled by someone, or put together from others."""

import re
from collections.abc import Sequence
from pathlib import Path

from astropy.io import fits

from skylevel.io.cards import first_value
from skylevel.io.hdus import Hdu

# The card that a tool leaves, the value that means it did its work (any that is not "no", where there is none here),
# and the tool.
_SIGNS = (
    ("S_CLNFNS", "COMPLETE", "clean_flicker_noise of the JWST pipeline"),
    ("S_NSCLEN", "COMPLETE", "nsclean of the JWST pipeline"),
    ("ONEFEXP", None, "grizli's 1/f correction"),
)
SIGN_CARDS = ("SKYLEVEL", *(keyword for keyword, _, _ in _SIGNS))
_HISTORY = re.compile(r"remstriping|image1overf", re.IGNORECASE)
_NO = ("", "F", "FALSE", "NO", "NONE", "SKIPPED", "INCOMPLETE", "0", "N/A")

_RESAMPLED_CARDS = ("S_RESAMP", "DRIZCORR")
_RESAMPLED_HDUS = {"WHT", "CON"}
# Products of the JWST pipeline's third stage are put together from several exposures; those of the second end in _i2d.
_RESAMPLED_NAMES = re.compile(r"jw\d{5}-[a-z]\d+_[tsv]\d+_|.*_i2d\.")


def levelled_by(headers: Sequence[fits.Header]) -> str:
    """Return the tool that levelled an exposure before, with its version where it is skylevel; empty where none did."""
    version = first_value(["SKYLEVEL"], headers)
    if version is not None:
        return f"skylevel {version}"
    for keyword, needed, tool in _SIGNS:
        value = str(first_value([keyword], headers) or "").strip().upper()
        if value == needed or (needed is None and value not in _NO):
            return tool
    found = (_HISTORY.search(str(line)) for header in headers for line in header.get("HISTORY", ()))
    return next((match.group().lower() for match in found if match), "")


def is_resampled(hdus: Sequence[Hdu], headers: Sequence[fits.Header], path: str) -> bool:
    """Return whether an image was put together from others (``_i2d``): its rows are no detector's rows."""
    done = any(str(first_value([keyword], headers)).upper() == "COMPLETE" for keyword in _RESAMPLED_CARDS)
    names = Path(path).name, str(first_value(["FILENAME"], headers))
    return done or any(map(_RESAMPLED_NAMES.match, names)) or bool(_RESAMPLED_HDUS & {hdu.name for hdu in hdus})

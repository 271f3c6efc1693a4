"""Names from outside, made safe."""

import hashlib
import re

_LONGEST = 100


def safe_name(text: str) -> str:
    """Return an outside name as one component of a path: itself, where it is an ordinary one."""
    plain = re.sub(r"[^A-Za-z0-9 ._+=@~-]", "_", text)
    if plain == text and 0 < len(text) <= _LONGEST and not text.startswith(".") and text.strip() == text:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{plain.strip('. ')[: _LONGEST - 12] or 'unnamed'}~{digest}"

"""Level one exposure: xarray in, xarray out, the same bits for any chunks."""

from skylevel.level.background import background_image
from skylevel.level.channels import estimate_channels, level_channels, subtract_channels
from skylevel.level.rows import detect_rows, estimate_rows, level_rows, segment_rows, stripe_dim, subtract_rows

__all__ = [
    "background_image",
    "detect_rows",
    "estimate_channels",
    "estimate_rows",
    "level_channels",
    "level_rows",
    "segment_rows",
    "stripe_dim",
    "subtract_channels",
    "subtract_rows",
]

"""A small observing program whose truth is known, and how much of its structure a run took away.

`write_program` simulates three NIRCam exposures and two camera raw frames and keeps what it injected beside them;
`measure_levels` compares a run's output with that, and `summary` sets the result out for a reader; `measure_comparison`
and `draw_comparison` set several runs beside each other.
Every pixel is simulated, and one seed gives the same bytes every time.
"""

from skylevel.demo.comparison import Comparison, draw_comparison, measure_comparison
from skylevel.demo.measure import DemoResult, measure_levels, summary
from skylevel.demo.program import write_program

__all__ = [
    "Comparison",
    "DemoResult",
    "draw_comparison",
    "measure_comparison",
    "measure_levels",
    "summary",
    "write_program",
]

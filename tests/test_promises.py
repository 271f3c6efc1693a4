"""Every test that `docs/promises.md` names is there to be run, and every promise names one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
PROMISES = [line for line in LINES if line.startswith("| ") and not line.startswith("| promise ")]
TEST = re.compile(r"`(tests/test_\w+\.py(?:::\w+)+)`")


def test_every_promise_has_a_test() -> None:
    assert len(PROMISES) > 30
    assert [line for line in PROMISES if not TEST.search(line)] == []


def test_every_test_that_is_named_can_be_collected() -> None:
    named = sorted({name for line in PROMISES for name in TEST.findall(line)})
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *named]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert collected.returncode == 0, collected.stdout[-3000:] + collected.stderr[-3000:]
    assert [name for name in named if not re.search(rf"^{re.escape(name)}\b", collected.stdout, re.M)] == []

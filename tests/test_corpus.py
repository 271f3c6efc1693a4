"""Every bad and odd file of the corpus does what is expected of it: it opens, or is refused in one line."""

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from corpus import EITHER, OPENS, REFUSED, SECONDS, corpus

pytestmark = pytest.mark.packages

ENDS = {REFUSED: {"refused", "unreadable", "unsupported"}, EITHER: {"opens", "refused", "unreadable", "unsupported"}}


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What a process of its own made of each file: its memory is bounded, and a crash there is no crash here."""
    folder = tmp_path_factory.mktemp("corpus")
    command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("corpus.py")), str(folder)]
    # What is left unwritten in memory must not decide anything.
    environment = os.environ | {"MALLOC_PERTURB_": "85"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"it ended at {found[-1:]}:\n{process.stderr[-3000:]}"
    return {line["name"]: line for line in found if "begun" not in line}


def test_there_are_enough_and_each_is_its_own():
    cases = corpus()
    assert len(cases) >= 700
    assert not [name for name, count in Counter(case.name for case in cases).items() if count > 1]


@pytest.mark.parametrize("case", corpus(), ids=lambda case: ascii(case.name))
def test_file(lines, case):
    line = lines[case.name]
    assert line["outcome"] in ENDS.get(case.expected, {case.expected}), line["message"]
    assert line["seconds"] < SECONDS
    assert (line["outcome"] == OPENS) == (not line["message"])


def test_memory_stayed_bounded(lines):
    assert len(lines) == len(corpus())
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1500 << 10

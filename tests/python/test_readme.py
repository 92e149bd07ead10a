"""The README's quick start is the example, and runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "quickstart.py"


def test_the_quick_start_is_in_the_readme_word_for_word():
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert EXAMPLE.read_text() in blocks


def test_the_quick_start_runs(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a new item of taste 3 is like items of tastes [3 3 3 3 3]" in done.stdout

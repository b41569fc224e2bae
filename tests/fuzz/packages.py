"""Small edge packages, as in tests/registry."""

import runpy
from pathlib import Path

make_package = runpy.run_path(str(Path(__file__).parents[1] / "registry" / "fixed_packages.py"))["make_package"]

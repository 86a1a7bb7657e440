"""Is every file of the package in the wheel, and nothing else? `check_wheel.py dist/*.whl`."""

import sys
import zipfile
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
files = {
    path.relative_to(SRC).as_posix()
    for path in (SRC / "topr").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
names = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
if files != names:
    sys.exit(f"missing: {sorted(files - names)}; not in the sources: {sorted(names - files)}")
print(f"{sys.argv[1]}: {len(names)} files")

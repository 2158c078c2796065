"""The packages stand in the repository's root: one source tree, two distributions, no copy.

pyproject.toml can name a folder of its own only.
"""

from pathlib import Path

from setuptools import find_packages, setup

# Of this file, not of the working directory: pip and build start elsewhere.
ROOT = Path(__file__).resolve().parents[2]

setup(
    packages=find_packages(str(ROOT), include=["data_injection*"]),
    package_dir={"data_injection": "../../data_injection"},
)

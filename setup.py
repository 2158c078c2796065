"""The packages, and what an installed one needs of the folders beside them (olmo_ext/shipped.py).

Only here because pyproject.toml cannot say both "find the packages" and "this folder is one too".
"""

from setuptools import find_packages, setup

ROOMS = ("data_injection*", "olmo_ext*", "eval*", "launch*", "theory*")

setup(
    packages=[*find_packages(include=ROOMS), "olmo_ext.configs", "olmo_ext.docs"],
    package_dir={"olmo_ext.configs": "configs", "olmo_ext.docs": "docs"},
    package_data={
        "": ["**/templates/*"],
        "olmo_ext.configs": ["**/*.yaml", "**/*.md"],
        "olmo_ext.docs": ["findings.md"],
    },
)

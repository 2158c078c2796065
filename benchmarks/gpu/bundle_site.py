"""Copy the engine and what it imports into a folder that travels; stubs for what a run never asks.

    .venv/bin/python benchmarks/gpu/bundle_site.py .gpu/site
Copies, nothing is patched. Stubs stand for clients of clouds and for `datasets` and W&B: importing
one works, as it does without a network; asking it anything raises and says so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

COPIED = ("olmo", "olmo_data", "omegaconf", "importlib_resources")
LEFT_OUT = ("__pycache__", "*.pyc", "tests", "hf_datasets", "oe_eval_tasks")
"""The last two are the engine's evaluation sets: most of its size, and no stage reads them."""
NAMED = ("ai2-olmo", "omegaconf", "importlib_resources", "olmo-ext")
"""Distributions whose version somebody asks for."""

ABSENT = '''"""Stands for a package that the GPU machine lacks and a local run never calls."""


class _Absent:
    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        raise RuntimeError("{name} is a stub on the GPU machine: no network, no cloud")

    def __getattr__(self, name):
        raise AttributeError("{name}." + name + " is a stub on the GPU machine")


'''

STUBS = {
    # The engine makes a client for every corpus, local ones too (memmap_dataset.py:102).
    "boto3.py": """
class Session:
    def __init__(self, *args, **kwargs):
        pass

    def client(self, *args, **kwargs):
        return _Absent()
""",
    "botocore/exceptions.py": """
class ClientError(Exception): ...
class HTTPClientError(Exception): ...
class ConnectionError(Exception): ...
class NoCredentialsError(Exception): ...
""",
    "botocore/config.py": """
class Config:
    def __init__(self, *args, **kwargs):
        pass
""",
    "cached_path/__init__.py": """
from pathlib import Path

get_download_progress = _Absent()


def cached_path(name, *args, **kwargs):
    if not Path(name).exists():
        raise FileNotFoundError(name)
    return Path(name)
""",
    "cached_path/schemes.py": """
class SchemeClient:
    recoverable_errors = ()

    def __init__(self, resource):
        raise RuntimeError("cached_path is a stub on the GPU machine")


def add_scheme_client(*args):
    pass
""",
    "google/api_core/retry.py": """
def Retry(*args, **kwargs):
    return lambda function: function


def if_transient_error(error):
    return False
""",
    "google/api_core/exceptions.py": """
class NotFound(Exception): ...
""",
    "datasets.py": """
load_dataset = _Absent()
load_from_disk = _Absent()
class Dataset: ...
class DatasetDict: ...
""",
    "wandb/__init__.py": """
run = None


def init(*args, **kwargs):
    raise RuntimeError("wandb is a stub on the GPU machine; leave train.wandb unset")


def log(*args, **kwargs):
    raise RuntimeError("wandb is a stub: no run was started")


def finish(*args, **kwargs):
    pass
""",
    "wandb/errors.py": """
class CommError(Exception): ...
""",
}


def write_stub(site: Path, name: str, body: str) -> None:
    path = site / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(site).parents:
        # `google` is a namespace that protobuf shares: an __init__.py would hide google.protobuf.
        if str(parent) not in (".", "google"):
            (site / parent / "__init__.py").touch()
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    path.write_text(ABSENT.replace("{name}", module) + body.lstrip("\n"))


def main(site: Path) -> None:
    for name in COPIED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            sys.exit(f"bundle_site: {sys.executable} has no {name}; run 'make install' first")
        ignore = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(Path(spec.origin).parent, site / name, ignore=ignore)
    for name in NAMED:
        version = importlib.metadata.version(name)
        meta = site / f"{name.replace('-', '_')}-{version}.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for name, body in STUBS.items():
        write_stub(site, name, body)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

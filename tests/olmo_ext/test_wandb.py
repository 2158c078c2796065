"""W&B beside a run that is signalled: its service ends with SIGTERM, the run must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, subprocess
import wandb
from olmo_ext.compat import finish_wandb, outlive_wandb

wandb.init(project="test", dir=".")
outlive_wandb()
wandb.log({"a": 1})
service = subprocess.run(
    ["pgrep", "-P", str(os.getpid()), "wandb"], capture_output=True, text=True, check=True
)
for pid in service.stdout.split():
    os.kill(int(pid), signal.SIGTERM)
for pid in service.stdout.split():
    os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)  # gone
for step in range(3):
    wandb.log({"a": step})
finish_wandb(0)
assert wandb.run is None
print("went on", flush=True)
os._exit(0)
"""


def test_a_run_outlives_wandbs_service(tmp_path: Path) -> None:
    """As under SLURM, which signals every process of a job."""
    # A test before this one may have left its own service's address: then there would be no other.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "went on" in done.stdout, done.stderr[-2000:]
    assert done.stderr.count("W&B's service is gone") >= 1

"""The plans of all committed configs are those of commit 4e09618, before the move into folders.

    python tests/test_committed_plans.py > tests/committed_plans.json   # after a change meant so

A plan's hash does not look at the corpus' text, only at its length, vocabulary and EOS: two files
of one token stand for the two corpora.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from launch.grid import Sweep, load_sweep, point_overrides
from launch.sweep.quickstart import SMOKE_WIDTHS, WIDTHS, quickstart_sweep
from olmo_ext.build import Memo, compile_stream
from olmo_ext.config import load_experiment

CONFIGS = Path(__file__).parent.parent / "configs"
GOLDEN = Path(__file__).parent / "committed_plans.json"
NO_EXPERIMENTS = ("sites", "theory")
NUM_TOKENS = 2**22 + 2**17
"""2,112 rows of 2,048: more than the largest batch."""


def sweeps() -> Iterator[tuple[str, Sweep]]:
    for path in sorted(CONFIGS.rglob("*.yaml")):
        name = path.relative_to(CONFIGS).with_suffix("")
        if name.parts[0] in NO_EXPERIMENTS:
            continue
        if "experiments" in yaml.safe_load(path.read_text()):
            yield str(name), load_sweep(path)
        else:
            yield str(name), Sweep(name.name, (path,), {}, {})
    for smoke, widths in ((False, WIDTHS), (True, SMOKE_WIDTHS)):
        name = "olmo-ext quickstart" + " --smoke" * smoke
        yield name, quickstart_sweep(widths=widths, seeds=(6198,), smoke=smoke)


@cache  # hundreds of points are of a few files
def vocab_of(experiment: Path) -> int:
    return yaml.safe_load(experiment.read_text())["train"]["model"]["vocab_size"]


def plan_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """The first 16 hex digits of each point's plan hash, by config; `folder` takes two files."""
    memo, found = Memo(), {}
    for vocab in (2048, 50280):
        np.full(NUM_TOKENS, 7, dtype=np.uint16).tofile(folder / f"{vocab}.npy")
    for config, sweep in sweeps():
        hashes = found[config] = {}
        for point in sweep.points():
            vocab = vocab_of(point.experiment)
            corpus = [
                "corpus=null",
                f"train.data.paths=[{folder / str(vocab)}.npy]",
                f"train.model.eos_token_id={vocab - 1}",
                "train.model.pad_token_id=1",
            ]
            overrides = [*point_overrides(sweep, point), *corpus]
            stream = compile_stream(
                load_experiment(point.experiment, overrides), manifest=None, memo=memo
            )
            hashes[point.name or sweep.name] = stream.plan.hash[:16]
    return found


@pytest.mark.slow
def test_the_plans_of_all_committed_configs_have_not_moved(tmp_path: Path) -> None:
    found, golden = plan_hashes(tmp_path), json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    for config, hashes in golden.items():
        assert found[config] == hashes, config


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(plan_hashes(Path(name)), indent=1))

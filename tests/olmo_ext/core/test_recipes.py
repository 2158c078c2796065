"""The ladder in OLMo-core's config style is the ladder of configs/, and the example runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from refusals import refuses

from launch.doctor import examine
from olmo_ext.core import compat
from olmo_ext.core.recipes import RUNGS, ladder

pytestmark = pytest.mark.skipif(bool(compat.MISSING), reason="needs ai2-olmo-core 3: test-core")

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_has_the_shape_and_the_parameters_of_its_config(rung: str) -> None:
    text = (ROOT / "configs" / "olmo_4M_to_4B" / "paper" / f"{rung}.yaml").read_text()
    model = yaml.safe_load(text)["train"]["model"]
    width, depth = model["d_model"], model["n_layers"]
    assert RUNGS[rung] == (width, depth, model["n_heads"])
    config = ladder(rung, vocab_size=model["embedding_size"])
    block = config.block.feed_forward
    assert block.hidden_size == model["mlp_ratio"] * width // 2
    # Embedding and output apart; attention, SwiGLU and two norms a block; the final norm.
    of_block = 4 * width**2 + 3 * width * block.hidden_size + 2 * width
    total = 2 * model["embedding_size"] * width + depth * of_block + width
    assert config.num_params == total


def test_a_rung_takes_dotted_overrides_and_refuses_unknown_ones() -> None:
    config = ladder("4M", "n_layers=3", "block.feed_forward.hidden_size=128")
    assert (config.n_layers, config.block.feed_forward.hidden_size) == (3, 128)
    assert (config.d_model, ladder("4M").n_layers) == (64, 8)
    for wrong in ("bock.x=1", "block.nonsense=3", "n_layers=two"):
        with refuses(key="overrides", value=(wrong,), rule="dotted fields"):
            ladder("4M", wrong)


def test_an_unknown_rung_is_refused_by_name() -> None:
    with refuses(key="rung", value="5M", rule="4M, 20M"):
        ladder("5M")


def test_doctor_takes_this_environment_for_what_it_is() -> None:
    found = {one.what: one.status for one in examine()}
    assert found["OLMo-core"] == "note"
    assert "fail" not in found.values()


def test_the_example_trains_the_plans_rows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "olmo_core_run.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "320 rows, 50 injected, 0 differences"

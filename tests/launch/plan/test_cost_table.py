"""The cost of a ladder and of a grid: what stands in the table is what a run has and leaves."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from olmo.model import OLMo
from refusals import refuses
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from eval.checkpoints.checkpoint import find_checkpoints
from eval.text import count
from launch.cli import app
from launch.grid import Sweep
from launch.plan.cost import read_experiments, show_costs, totals
from launch.reckon import Reckoner, size
from launch.runs import plan_runs
from launch.sweep.sweep import show_runs
from olmo_ext.config import load_experiment
from olmo_ext.cost import kept_checkpoints, run_cost
from olmo_ext.train import train

Write = Callable[..., Path]

LADDER = Path(__file__).parent.parent.parent.parent / "configs" / "olmo_4M_to_4B"


def test_the_papers_ladder_is_one_table_smallest_first_without_a_corpus() -> None:
    rows = Reckoner(gpus=8).rows(read_experiments([LADDER / "paper"]))
    assert [row.rung for row in rows] == ["4M", "20M", "300M", "1B", "4B"]
    assert [row.strategy for row in rows] == ["ddp", "ddp", "ddp", "fsdp", "fsdp"]
    assert [row.cost.num_params for row in rows] == [
        3_744_832, 19_101_888, 319_980_544, 1_176_832_000, 3_968_167_680,
    ]  # fmt: skip
    assert {row.cost.num_tokens for row in rows} == {209_715_200_000}
    # The page's own figures: GB a GPU, and 51 checkpoints of 12 bytes a parameter.
    assert [round(row.cost.memory.total / 1e9) for row in rows] == [21, 27, 36, 50, 52]
    assert [row.num_checkpoints for row in rows] == [51] * 5
    four = rows[-1]
    assert four.checkpoint == 12 * 4_161_335_040
    assert four.storage == (50 * 12 + 4) * 4_161_335_040  # at step 0 there are no moments yet


def test_the_papers_grid_is_summed_over_its_210_runs(tmp_path: Path) -> None:
    out, sweep = tmp_path / "cost.json", LADDER / "sweeps" / "frequency.yaml"
    done = CliRunner().invoke(app, ["plan", str(sweep), "--cost", "--json", str(out)])
    found = json.loads(out.read_text())
    assert [row["num_runs"] for row in found["rows"]] == [42] * 5
    total = found["total"]
    assert total["runs"] == 210
    assert total["tokens"] == 210 * 209_715_200_000
    alone = [row["gpu_hours"] for row in found["rows"]]
    assert total["gpu_hours"] == pytest.approx(42 * sum(alone))
    assert total["storage"] == 42 * sum(row["storage"] for row in found["rows"])
    assert "210" in done.stdout
    assert "44T" in done.stdout


def test_hours_are_operations_over_peak_and_mfu() -> None:
    rows = Reckoner(gpus=4, peak_tflops=300.0, mfu=0.25).rows(
        read_experiments([LADDER / "ladder" / "4M.yaml"])
    )
    assert rows[0].cost.hours == pytest.approx(rows[0].cost.flops / (4 * 300e12 * 0.25) / 3600)
    assert totals(rows)["gpu_hours"] == pytest.approx(4 * rows[0].cost.hours)


def small(write_experiment: Write, **settings: object) -> Path:
    def edit(config: dict) -> None:
        config["train"]["model"].update(d_model=128, n_layers=2)
        config["train"].update(max_duration=4, save_interval_unsharded=2, **settings)

    return write_experiment(edit)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [0, 2, 4]),
        ({"save_interval_unsharded": 3}, [0, 3, 4]),
        ({"save_num_unsharded_checkpoints_to_keep": 2}, [2, 4]),
        ({"save_num_unsharded_checkpoints_to_keep": 0}, [0, 4]),
        ({"no_pre_train_checkpoint": True}, [2, 4]),
    ],
)
def test_checkpoints_of_a_real_run_have_the_steps_and_the_bytes_of_the_table(
    settings: dict, steps: list[int], write_experiment: Write
) -> None:
    path = small(write_experiment)
    overrides = [f"train.{key}={json.dumps(value)}" for key, value in settings.items()]
    experiment = load_experiment(path, overrides)
    (row,) = Reckoner().rows([experiment])
    assert kept_checkpoints(experiment.train, 4) == steps
    folder = train(experiment)
    found = find_checkpoints(folder)
    assert [checkpoint.step for checkpoint in found] == steps
    assert row.num_checkpoints == len(steps)
    latest = sum((found[-1].path / name).stat().st_size for name in ("model.pt", "optim.pt"))
    assert latest == pytest.approx(row.checkpoint, rel=0.03)
    kept = sum(
        (checkpoint.path / name).stat().st_size
        for checkpoint in found
        for name in ("model.pt", "optim.pt")
    )
    assert kept == pytest.approx(row.storage, rel=0.03)
    model = torch.load(found[-1].path / "model.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in model.values()) == row.cost.num_params_total


def test_operations_are_those_that_torch_counts(write_experiment: Write) -> None:
    """Torch counts matrix products. The engine adds 2 a parameter for the norms' weights, and 4 for
    the input embedding's in the backward pass, where no product is: taken away here."""
    experiment = load_experiment(small(write_experiment))
    cfg = experiment.train.model
    model = OLMo(cfg.update_with(init_device="cpu", flash_attention=False))
    ids = torch.randint(2, cfg.vocab_size, (3, cfg.max_sequence_length))
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    cost = run_cost(experiment.train, num_steps=1)
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    embedding = model.transformer.wte.weight.numel()
    products = cost.flops / cost.num_tokens - 6 * norms - 4 * embedding
    assert counter.get_total_flops() / ids.numel() == pytest.approx(products, rel=0.03)


def test_a_plan_of_a_sweep_tells_tokens_hours_and_storage_of_every_cell(
    write_experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"steps": {"short": {}, "long": {"train.max_duration": 40}}}
    runs = plan_runs(Sweep("demo", (small(write_experiment),), axes), tmp_path / "o")
    show_runs(runs, Console(width=200), peak_tflops=989.0, mfu=0.4, json=None)
    said = capsys.readouterr().out
    rows = [Reckoner().row(run.experiment) for run in runs if run.experiment is not None]
    (long,) = [line for line in said.splitlines() if "demo-long" in line]
    assert size(rows[1].storage) in long
    assert "21" in long.split()  # step 0 and every second of 40
    assert "2 runs, 5.63K tokens" in said
    assert size(sum(row.storage for row in rows)) in said
    assert not (tmp_path / "o").exists()


def test_nothing_to_reckon_is_said(tmp_path: Path) -> None:
    with refuses(key=tmp_path, rule="holds no experiment", remedy="name files or their folder"):
        read_experiments([tmp_path])
    with pytest.raises(FileNotFoundError, match="no experiment file"):
        read_experiments([tmp_path / "none.yaml"])


def test_gpus_that_do_not_divide_a_batch_are_refused() -> None:
    with refuses(key="--gpus", value=24, rule="train.global_train_batch_size 32"):
        Reckoner(gpus=24).rows(read_experiments([LADDER / "ladder"]))


@pytest.mark.parametrize(
    ("name", "value"), [("peak_tflops", math.inf), ("peak_tflops", math.nan), ("mfu", math.nan)]
)
def test_a_device_that_there_is_none_of_is_refused(name: str, value: float) -> None:
    with refuses(key=f"--{name.replace('_', '-')}", value=value):
        Reckoner(**{name: value})


def test_the_tables_fit_a_terminal_and_a_pipe_uncut() -> None:
    out = io.StringIO()
    rows = Reckoner(gpus=8).rows(read_experiments([LADDER / "sweeps" / "frequency.yaml"]))
    show_costs(rows, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue()
    # A folded number or rung would begin a line of its own.
    for table, title in enumerate(("FLOPs", "storage", "activations")):
        begin = next(index for index, line in enumerate(lines) if f" {title}" in line)
        rungs = [line.split()[0] for line in lines[begin + 2 : begin + 7]]
        assert rungs == ["4M", "20M", "300M", "1B", "4B"], table
    assert "(3% to 37% on top)" in " ".join(lines)


def test_sizes_and_tokens_are_read_at_a_glance() -> None:
    assert [size(n) for n in (12, 83_571_456, 2.5e12)] == ["12 B", "83.6 MB", "2.5 TB"]
    assert [count(n) for n in (950, 2.1e11, 4.4e13)] == ["950", "210B", "44T"]

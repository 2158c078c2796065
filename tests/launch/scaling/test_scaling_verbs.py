"""olmo-ext scaling fit: one verb from a table or a folder of runs to numbers, figure and trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from designs import PAPER, draw, grid
from matplotlib.colors import to_rgb
from refusals import refuses
from typer.testing import CliRunner

from eval.figures.scaling import DATA, PARAMETERS, reach_figure
from eval.records import RecordWriter, read_records
from launch.cli import app
from launch.scaling.losses import METRIC, read_losses
from olmo_ext.config import load_experiment
from olmo_ext.train import train
from theory.scaling.fit import fit_law
from theory.scaling.learnability import learnability
from theory.scaling.runs import Runs

FILES = ("fit.json", "constants.csv", "draws.csv", "thresholds.csv", "sizes.csv", "runs.csv")


def fit(*arguments: object) -> str:
    """What the verb prints; what it raises, main() turns into status 2."""
    arguments = ("scaling", "fit", *arguments, "--resamples", 100)
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(map(str, arguments)))
    if done.exception is not None:
        raise done.exception
    return done.stdout


def frame(design: str = "paper, grid", *, seed: int = 0) -> pd.DataFrame:
    runs = draw(design, seed=seed)
    return pd.DataFrame({"params": runs.params, "tokens": runs.tokens, "loss": runs.loss})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    frame().to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def test_a_csv_gives_constants_frontier_definitions_and_every_file(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = fit(source, "--out", out, "--large", 2e9, "--eps", 0, "--eps", 0.05, "--seed", 7)
    for text in (
        "alpha",
        "beta",
        "95% interval",
        "Frontier of the runs",
        "N_s*",
        "gamma",
        "240 run",
    ):
        assert text in said
    assert {*FILES, "frontier.csv", "scaling.png"} == {path.name for path in out.iterdir()}
    found = json.loads((out / "fit.json").read_text())
    for name in ("L0", "A", "alpha", "B", "beta"):
        one = found["constants"][name]
        assert one["low"] < one["value"] < one["high"]
    assert found["derived"]["reach"]["value"] == pytest.approx(4.05, rel=0.15)
    assert found["learnability"]["large"] == 2e9
    assert [one["eps"] for one in found["learnability"]["thresholds"]] == [0, 0.05]
    assert found["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found["fit"]["seed"] == 7
    assert "olmo-ext" in found["command"]
    assert len(found["commit"]) >= 40
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    draws = pd.read_csv(out / "draws.csv")
    low, high = np.percentile(draws.alpha, [2.5, 97.5], method="nearest")
    constants = pd.read_csv(out / "constants.csv").set_index("name")
    assert tuple(constants.loc["alpha", ["low", "high"]]) == pytest.approx((low, high))
    runs = pd.read_csv(out / "runs.csv")
    assert runs.log_residual.std() == pytest.approx(0.01, rel=0.15)
    assert len(pd.read_csv(out / "sizes.csv")) == (frame().params.drop_duplicates() < 2e9).sum()


def test_the_same_seed_gives_the_same_files_and_other_names_of_columns_do_too(
    source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    frame().set_axis(["n", "d", "val_loss"], axis=1).sample(frac=1, random_state=0).to_parquet(
        other
    )
    fit(source, "--out", tmp_path / "one")
    names = ("--params", "n", "--tokens", "d", "--loss", "val_loss")
    fit(other, "--out", tmp_path / "two", *names)
    for name in ("draws.csv", "sizes.csv", "frontier.csv"):
        one, two = (pd.read_csv(tmp_path / folder / name) for folder in ("one", "two"))
        pd.testing.assert_frame_equal(one, two, rtol=1e-6)


def test_outside_the_data_is_said(source: Path, tmp_path: Path) -> None:
    said = " ".join(fit(source, "--out", tmp_path / "out", "--large", 1e11).split())
    assert "outside the data: N_l = 1e+11 is 25 times above the runs' 4e+09" in said
    inside = fit(source, "--out", tmp_path / "out", "--large", 2e9)
    assert "N_l =" in inside
    assert "outside the data: N_l" not in inside


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (lambda t: t.drop(columns="tokens"), "no column tokens, but params, loss"),
        (lambda t: t.assign(loss="?"), "column loss must be numbers"),
        (lambda t: t.assign(loss=-t.loss), "column loss must be positive"),
        (lambda t: t.assign(params=1e8), "params has only the value 1e"),
        (lambda t: t.head(4), "4 runs cannot fit"),
        (lambda t: pd.concat([t, t.head(2)]), "2 rows stand twice"),
        (lambda t: t.assign(loss=t.loss.where(t.index != 3)), "(4) it is missing"),
        (lambda t: t.assign(run="one"), "1 runs cannot fit"),
        (lambda t: t.assign(run=np.nan), "empty in 240 of 240 rows"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_written(
    tmp_path: Path, edit: Callable[[pd.DataFrame], pd.DataFrame], rule: str
) -> None:
    path = tmp_path / "bad.csv"
    edit(frame()).to_csv(path, index=False)
    with refuses(key=f"{path}: column run" if "empty" in rule else path, rule=rule):
        fit(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_options_and_sources_are_refused(source: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for option, value, rule in (
        ("--eps", -1.0, "at least 0"),
        ("--large", 1e3, "above the smallest size"),
    ):
        with refuses(key=option, value=value, rule=rule):
            fit(source, *out, option, value)
    with refuses(key=source, rule="no column val"):
        fit(source, *out, "--loss", "val")
    with pytest.raises(FileNotFoundError, match="params, tokens, loss"):
        fit(tmp_path / "none.csv", *out)
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl"):
        fit(tmp_path, *out)
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with refuses(key=tmp_path / "x.parquet", rule="cannot be read"):
        fit(tmp_path / "x.parquet", *out)
    with refuses(key="--out", value=source, rule="a folder", remedy="a file"):
        fit(source, "--out", source)
    assert not (tmp_path / "out").exists()


def write_runs(folder: Path, **fields: Any) -> None:
    """A sweep's records: 8 sizes x 8 lengths, each run with a loss on the way and at its end."""
    params, tokens = grid(np.geomspace(4e6, 4e9, 8).round(), np.geomspace(1e8, 2e11, 8).round())
    loss = PAPER.loss(params, tokens) * np.exp(0.01 * np.random.default_rng(0).normal(size=64))
    for number, (n, d, value) in enumerate(zip(params, tokens, loss, strict=True)):
        run = {"run": "same", "rung": f"{n:g}", "params": int(n), "seed": 0, "plan_hash": "h"}
        run |= {"protocol": "single", "task": "", "family": "", "rate_per_step": 0.0}
        run |= {"exposures_per_example": 0.0, "split": "train", "metric": METRIC} | fields
        half = run | {"step": 50, "tokens": int(d) // 2, "value": value + 1}
        end = run | {"step": 100, "tokens": int(d), "value": value}
        score = end | {"task": "cmp", "metric": "score", "value": 0.5}
        place = folder / f"run{number:02d}"
        with RecordWriter(place / "records.jsonl") as writer:
            writer.write([half, end, score])
        (place / "run.json").write_text(json.dumps({"num_steps": 100}))


def test_a_sweep_gives_each_finished_runs_last_loss_and_says_which_number_it_is(
    tmp_path: Path,
) -> None:
    write_runs(tmp_path / "sweep")
    (tmp_path / "sweep" / "run05" / "run.json").write_text(json.dumps({"num_steps": 200}))
    table = read_losses(tmp_path / "sweep")
    assert len(table.frame) == 63  # one of them is not at its end
    assert table.frame.loss.max() < 4.5
    said = " ".join(fit(tmp_path / "sweep", "--out", tmp_path / "out").split())
    assert "train/CrossEntropyLoss of the last step's batch, injected tokens included" in said
    assert "run05 is left out: it is at step 100 of 200" in said
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert found["constants"]["alpha"]["value"] == pytest.approx(0.46, abs=0.05)
    before = table.sha256
    (tmp_path / "sweep" / "run06" / "records.jsonl").open("a").write("\n")
    assert read_losses(tmp_path / "sweep").sha256 != before


def test_runs_of_two_corpora_are_refused_and_other_differences_said(tmp_path: Path) -> None:
    write_runs(tmp_path / "sweep", corpus_hash="a" * 64, learning_rate=0.01)
    place = tmp_path / "sweep" / "run07" / "records.jsonl"
    text = place.read_text()
    place.write_text(text.replace('"learning_rate": 0.01', '"learning_rate": 0.02'))
    assert "differ in learning_rate" in read_losses(tmp_path / "sweep").notes[0]
    place.write_text(text.replace("a" * 64, "b" * 64))
    with refuses(key="the runs", value=["a" * 12, "b" * 12], rule="2 corpora"):
        read_losses(tmp_path / "sweep")


def test_a_trained_run_is_a_row_with_its_last_recorded_loss(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    run = train(load_experiment(write_experiment()))
    table = read_losses(run)
    records = read_records(run)
    last = records[(records.metric == METRIC) & (records.step == 12)].iloc[0]
    row = table.frame.iloc[0]
    assert (row.params, row.tokens, row.loss) == (last.params, 12 * 8 * 16, last.value)
    with refuses(key=run, rule="1 runs cannot fit the 5 constants"):
        fit(run, "--out", tmp_path / "out")


def test_records_without_a_loss_are_refused_with_the_callback_to_use(tmp_path: Path) -> None:
    write_runs(tmp_path / "sweep", metric="score")
    with refuses(key=tmp_path / "sweep", rule="train_loss", remedy="callback task_eval"):
        read_losses(tmp_path / "sweep")


def test_the_figure_has_both_curves_both_bands_and_the_runs() -> None:
    fitted = fit_law(draw("paper, grid", seed=0), resamples=100)
    axis = reach_figure(fitted, learnability(fitted)).axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axis.lines}
    optimal, infinite = lines["L_C, compute-optimal"], lines["L_inf, infinite data"]
    assert (optimal.get_xdata() == infinite.get_xdata()).all()
    assert (optimal.get_ydata() > infinite.get_ydata()).all()
    slope = np.polyfit(np.log(optimal.get_xdata()), np.log(optimal.get_ydata()), 1)[0]
    assert slope == pytest.approx(-fitted.law.alpha)
    faces = [band.get_facecolor() for band in axis.collections]
    colours = {tuple(np.round(face[0][:3], 3)) for face in faces if len(face)}
    for band in (DATA, PARAMETERS):
        assert tuple(np.round(to_rgb(band), 3)) in colours
    dots = max(axis.collections, key=lambda one: len(one.get_offsets()))
    assert len(dots.get_offsets()) == (fitted.runs.loss > fitted.law.L0).sum()


DOCS = Path(__file__).parents[3] / "docs" / "scaling"


def test_the_documented_example_regenerates_from_its_table() -> None:
    table = read_losses(DOCS / "synthetic.csv")
    documented = json.loads((DOCS / "fit.json").read_text())
    assert table.sha256 == documented["source"]["sha256"]
    fitted = fit_law(Runs.of(table.frame.params, table.frame.tokens, table.frame.loss))
    for name, one in documented["constants"].items():
        assert getattr(fitted.law, name) == pytest.approx(one["value"], rel=1e-3)
        assert fitted.interval(name) == pytest.approx((one["low"], one["high"]), rel=1e-2)


def test_sixteen_real_runs_are_fitted_with_what_they_cannot_say(tmp_path: Path) -> None:
    said = " ".join(fit(DOCS / "micro.jsonl", "--out", tmp_path / "out").split())
    assert "16 runs" in said
    assert "L0 is not bounded away from 0" in said
    assert "No frontier" in said
    found = json.loads((tmp_path / "out" / "fit.json").read_text())["constants"]
    assert found["alpha"]["value"] == pytest.approx(0.136, abs=0.005)
    assert found["L0"]["high"] > 1
    assert not (tmp_path / "out" / "frontier.csv").exists()


def test_rows_far_from_the_law_are_named_with_how_far_the_constants_move(tmp_path: Path) -> None:
    table = frame()
    spoiled = table.index[table.tokens == table.tokens.min()][:4]
    table.loc[spoiled, "loss"] *= 1.4
    table.to_csv(tmp_path / "runs.csv", index=False)
    said = " ".join(fit(tmp_path / "runs.csv", "--out", tmp_path / "out").split())
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert "note: 4 rows of the table are 10 spreads or more from the law" in said
    assert sorted(found["outliers"]["rows"]) == [row + 1 for row in spoiled]
    without, value = found["outliers"]["constants_without"], found["constants"]["beta"]["value"]
    assert f"beta {value:.4g} to {without['beta']:.4g}" in said
    rest = table.drop(index=spoiled)
    left = fit_law(Runs.of(rest.params, rest.tokens, rest.loss), resamples=0).law
    assert without["beta"] == pytest.approx(left.beta, rel=1e-4)

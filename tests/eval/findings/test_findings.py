"""docs/findings.md: its tables are those of the committed records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from data_injection.corpus.facts import prepare_facts
from data_injection.errors import ConfigError
from eval.findings import chain, regimes
from eval.findings.chapters import CHAPTERS, as_json_lines, chapter_records, write_chapter
from eval.findings.controls import fill, mean
from eval.findings.hosts import HOSTS, OPEN, SWEEP, paired, told
from eval.findings.mechanism import rank_correlation
from eval.records import read_records
from launch.sweep.confirm import CONFIGS, confirm, confirm_sweeps
from theory.advice.accumulation import course

DOCS = Path(__file__).parent.parent.parent.parent / "docs"
FRAMES = {name: read_records(DOCS / "findings" / name) for name in CHAPTERS}
TEXT = (DOCS / "findings.md").read_text()
SAID = " ".join(TEXT.split())

each_chapter = pytest.mark.parametrize("name", CHAPTERS)


@each_chapter
def test_every_table_of_the_document_regenerates_from_the_committed_records(name: str) -> None:
    assert fill(TEXT, chapter_records(name, DOCS), CHAPTERS[name].tables) == TEXT


def test_a_changed_record_or_a_changed_table_is_noticed() -> None:
    frame, tables = FRAMES["controls"], CHAPTERS["controls"].tables
    changed = frame.copy()
    of = (changed.run == "single-s1-w16-r4") & (changed.metric == "score")
    assert of.any()
    changed.loc[of, "value"] += 0.1
    assert fill(TEXT, changed, tables) != TEXT
    marked = "<!-- table: transfer -->\n"
    assert fill(TEXT.replace(marked, marked + "nonsense\n"), frame, tables) == TEXT


def test_the_document_shows_every_table_and_figure_once() -> None:
    tables = [name for chapter in CHAPTERS.values() for name in chapter.tables]
    assert sorted(re.findall(r"<!-- table: (\w+) -->", TEXT)) == sorted(tables)
    shown = re.findall(r"\]\(findings/(\w+/\w+)\.png\)", TEXT)
    figures = [f"{name}/{f}" for name, chapter in CHAPTERS.items() for f in chapter.figures]
    assert sorted(shown) == sorted(figures)
    assert all((DOCS / "findings" / f"{name}.png").stat().st_size > 10_000 for name in shown)


@each_chapter
def test_every_figure_draws_from_the_committed_records(name: str) -> None:
    for draw in CHAPTERS[name].figures.values():
        assert draw(FRAMES[name]).axes


@each_chapter
def test_every_condition_has_at_least_three_seeds(name: str) -> None:
    frame = FRAMES[name]
    condition = frame.run.str.replace(r"-s\d+", "", regex=True)
    assert frame.groupby([condition, "task", "learning_rate"]).seed.nunique().min() >= 3


@each_chapter
def test_the_records_are_the_runs_of_the_committed_sweeps_and_no_others(name: str) -> None:
    planned = {
        f"{sweep.name}-{'-'.join(point.labels)}"
        for sweep in confirm_sweeps(name)
        for point in sweep.points()
    }
    assert set(FRAMES[name].run) == planned
    told = json.loads((DOCS / "findings" / name / "provenance.json").read_text())
    assert told["runs"] == len(planned)


@each_chapter
def test_all_seeds_of_a_run_are_measured_at_the_same_last_step(name: str) -> None:
    """One that stops half way would be averaged with runs of twice its exposures."""
    frame = FRAMES[name]
    last = frame[frame.metric == "score"].groupby("run").step.max()
    cells = last.groupby(last.index.str.replace(r"-s\d+", "", regex=True))
    assert cells.size().min() >= 3
    assert cells.nunique().max() == 1


def test_what_three_seeds_do_not_exclude_of_transfer_is_the_tables_furthest_ends() -> None:
    table = TEXT.split("<!-- table: designs -->")[1].split("<!-- end -->")[0]

    def ends(beside: str) -> tuple[float, float]:
        cells = [line.split("|")[5].split(",")[0] for line in table.splitlines() if beside in line]
        parts = [tuple(map(float, cell.split(" ± "))) for cell in cells]
        return min(mean - half for mean, half in parts), max(mean + half for mean, half in parts)

    (like_low, gain), (loss, unlike_high) = ends("labels of their own"), ends("single tokens")
    assert gain > -like_low
    assert -loss > unlike_high
    assert f"gain of up to {gain:.2f} from like tasks".replace("0.", ".") in SAID
    assert f"loss of up to {-loss:.2f} from unlike ones".replace("0.", ".") in SAID


def test_at_equal_rate_times_steps_the_page_shows_no_difference_and_claims_no_equality() -> None:
    (line,) = (one for one in TEXT.splitlines() if "not declared, (1) at equal" in one)
    score, loss = re.findall(
        r"(?:of score|of choice loss) ([+-])0(\.\d+) ± 0(\.\d+), holds 0", line
    )
    said = "{}{} ± {} of the score's share, {}{} ± {} of the choice loss's".format(*score, *loss)
    assert f"no difference between the widths is shown: {said}" in SAID


def test_a_run_whose_records_stop_early_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"num_steps": 8}))
    row = FRAMES["controls"].query("metric == 'score'").head(1).assign(step=4)
    (folder / "records.jsonl").write_text(as_json_lines(row))
    with pytest.raises(ConfigError) as caught:
        write_chapter("controls", [folder], document=DOCS / "findings.md", out=tmp_path / "out")
    assert (caught.value.key, caught.value.value) == (f"{folder}: records", 4)
    assert f"`olmo-ext eval {folder}`" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_every_sweep_of_configs_confirm_belongs_to_one_chapter() -> None:
    files = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "experiment")
    assert sorted(name for chapter in CHAPTERS.values() for name in chapter.sweeps) == files


@each_chapter
def test_thinned_records_thin_and_read_back_as_they_were(name: str, tmp_path: Path) -> None:
    again = tmp_path / "records.jsonl"
    again.write_text(as_json_lines(CHAPTERS[name].thin(FRAMES[name])))
    assert again.read_bytes() == (DOCS / "findings" / name / "records.jsonl").read_bytes()


def test_a_rank_correlation_is_exact_and_its_p_is_that_of_permutations() -> None:
    rising = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    rho, p = rank_correlation(rising, rising**3)
    assert rho == pytest.approx(1.0)
    assert p < 0.005  # 2 of 5,040 orders are as extreme
    rho, p = rank_correlation(rising, pd.Series([1.0, -1.0, 1.1, -1.1, 1.2, -1.2, 0.0]))
    assert p > 0.3


def held_out(every: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """The comparison cells of chapter 1 at the bursts' learning rates beside what bursts predict.

    Columns: sweep, rung, steps, rate, score (mean over seeds), predicted (the equation at that
    rate from where the twin rests), without_forgetting, width_rate, exposures.
    """
    scores = controls[(controls.metric == "score") & (controls.split == "test")]
    scores = scores[scores.step == scores.groupby("run").step.transform("max")]
    scores = scores[scores.family == "comparison"].assign(sweep=scores.run.str.split("-").str[0])
    scores = scores[scores.sweep.isin(["learning_rate", "mixture", "single", "sparse"])]
    rates, rows = {SWEEP: 0.01, chain.WIDE: 0.003}, []
    for sweep, rung in {SWEEP: "w16", chain.WIDE: "w64"}.items():
        found = chain.balanced(every, sweep, OPEN)
        own = scores[(scores.rung == rung) & (scores.learning_rate == rates[sweep])]
        for (name, steps, rate), cell in own.groupby(["sweep", "step", "rate_per_step"]):
            said = {"rate": rate, "gain": found.gain.value, "ceiling": chain.CEILING}
            said["below"] = found.below
            row = {"sweep": name, "rung": rung, "steps": steps, "rate": rate}
            row["score"] = cell.value.mean()
            row["predicted"] = course(steps, **said, forgetting=found.forgetting.value)
            row["without_forgetting"] = course(steps, **said, forgetting=0.0)
            row["width_rate"] = int(rung[1:]) * rate
            rows.append(row | {"exposures": cell.exposures_per_example.mean()})
    return pd.DataFrame(rows)


def test_what_bursts_predict_of_other_cells_is_what_the_text_says() -> None:
    """Correlations, the lead over width x rate with its bootstrap, the level."""
    import numpy as np
    from scipy.stats import spearmanr

    hosts, controls = FRAMES["hosts"], FRAMES["controls"]
    cells = held_out(hosts.assign(sweep=hosts.run.str.split("-").str[0]), controls)
    score = cells.score.to_numpy()
    names = ("predicted", "width_rate", "without_forgetting", "exposures")
    found = {name: spearmanr(score, cells[name]).statistic for name in names}
    draw = np.random.default_rng(0).integers(0, len(cells), (2000, len(cells)))
    lead = [
        spearmanr(score[i], cells.predicted.to_numpy()[i]).statistic
        - spearmanr(score[i], cells.width_rate.to_numpy()[i]).statistic
        for i in draw
    ]
    low, high = np.nanpercentile(lead, [2.5, 97.5])
    right = int(((cells.predicted >= 0.5) == (cells.score >= 0.5)).sum())
    said = SAID
    values = [f"{found[name]:.2f}"[1:] for name in names]
    told = f"is {values[0]} for the prediction, {values[1]} for width x rate, {values[2]} for the"
    assert told in said
    assert f"equation without forgetting and {values[3]} for exposures." in said
    by = found["predicted"] - found["width_rate"]
    plain = [f"{value:.2f}".replace("0.", ".") for value in (by, low, high)]
    # The ends of a bootstrap of correlations, to a hundredth.
    assert f"+{plain[0]} [{plain[1]}, {plain[2]}]" in said
    assert (cells.predicted < cells.score).all()
    assert "too low in every one" in said
    off = f"{np.abs(cells.predicted - cells.score).mean():.2f}"[1:]
    assert f"right of .5 in {right} of {len(cells)} cells, off by {off} on average" in said


def test_the_pilots_losses_are_those_of_their_records() -> None:
    frame = read_records(DOCS / "findings" / "hosts" / "pilots.jsonl")
    loss = frame.groupby(["rung", "learning_rate"]).value.mean()
    seeds = frame.groupby(["rung", "learning_rate"]).seed.nunique()
    assert (seeds["w128"].eq(1).all(), seeds.drop("w128").eq(2).all()) == (True, True)
    rungs = ("w16", "w64", "w32", "w128")
    narrow, wide, between, widest = ([f"{value:.3f}" for value in loss[rung]] for rung in rungs)
    assert f"(1e-3, 3e-3 and 1e-2: {between[0]}, {between[1]} and {between[2]}, seeds" in SAID
    assert f"(3e-4, 1e-3 and 3e-3: {widest[0]}, {widest[1]} and {widest[2]}, seed 7" in SAID
    assert f"3e-3, 1e-2 and 3e-2 {narrow[0]}, {narrow[1]} and {narrow[2]};" in SAID
    assert f"1e-3, 3e-3 and 1e-2 {wide[0]}, {wide[1]} and {wide[2]}:" in SAID
    frame = read_records(DOCS / "findings" / "regimes" / "pilots.jsonl")
    loss = frame.groupby(["rung", "learning_rate"]).value.mean()
    narrow, wide = ([f"{value:.3f}" for value in loss[rung]] for rung in ("w16", "w64"))
    assert f"3e-3, 1e-2 and 3e-2 {narrow[0]}, {narrow[1]} and {narrow[2]};" in SAID
    assert f"{wide[0]}, {wide[1]}, {wide[2]} and {wide[3]}, where the least" in SAID


def test_what_is_left_after_a_hundred_steps_is_what_the_text_says() -> None:
    every = FRAMES["hosts"].assign(sweep=FRAMES["hosts"].run.str.split("-").str[0])
    scores, losses = [], []
    for sweep, host in (("closed_host", "text"), ("chain", "text"), ("chain", "text_1e_2")):
        rows = chain.twins_of(every, host, sweep)
        rows = rows[(rows.split == "test") & (rows.twin == "burst") & (rows.step == 1300)]
        scores.append(mean(rows[rows.metric == "score"].value))
        losses.append(f"{rows[rows.metric == 'choice_loss'].value.mean():.2f}")
    assert f"{scores[0]} at width 16, {scores[1]} at width 64 and {scores[2]} at width 64" in SAID
    assert f"the choice losses {losses[0]}, {losses[1]} and {losses[2]}." in SAID


def test_a_share_of_no_gain_is_undefined_and_sparse_cells_are_left_out() -> None:
    every = FRAMES["hosts"].assign(sweep=FRAMES["hosts"].run.str.split("-").str[0])
    cells = chain.measured(every)
    wide = cells[chain.WIDE, "text"]
    wide.gained["score"][wide.gained["score"].index[0]] = -0.1
    assert wide.shares["score"].isna().sum() == 1
    assert "of score undefined: no positive gain with seed 2" in chain.contrasts(cells)[0]
    for sparse in ((chain.WIDE, "text"), ("closed_host", "text"), ("closed_host", "t1024")):
        without = {cell: one for cell, one in cells.items() if cell != sparse}
        assert chain.contrasts(without)
    few = every[~((every.sweep == "closed_host") & (every.seed > 3))]
    assert {sweep for sweep, _ in chain.measured(few)} == {chain.WIDE, chain.MORE}
    assert "too few seeds" in chain.chain(few, few)
    assert "w16" not in chain.predicted(few, few)


def test_the_differences_that_the_text_names_are_those_of_the_records() -> None:
    every = FRAMES["hosts"].assign(sweep=FRAMES["hosts"].run.str.split("-").str[0])
    cells = chain.measured(every)
    narrow, between, wider, widest = (cells[cell] for cell in chain.WIDTHS.values())

    def apart(one: chain.Links, two: chain.Links) -> list[str]:
        return [told(paired(one.shares[m], two.shares[m])) for m in ("score", "choice_loss")]

    assert apart(between, narrow)[0] == "+0.24 ± 0.09, higher"
    assert apart(widest, wider)[0] == "+0.10 ± 0.07, higher"
    assert "16 to 32 (+.24 ± .09) and 64 to 128 (+.10 ± .07), where the rate falls" in SAID
    assert apart(wider, between) == ["+0.01 ± 0.13, holds 0", "+0.09 ± 0.13, holds 0"]
    assert "none is shown (score +.01 ± .13, choice loss +.09 ± .13" in SAID
    assert "of score +0.11 ± 0.03, higher, of choice loss +0.12 ± 0.04, higher" in SAID
    assert "of score +0.10 ± 0.04, higher, of choice loss +0.10 ± 0.05, higher" in SAID
    assert ".11 ± .03 of the score and .12 ± .04 of the choice loss per doubling" in SAID
    assert ".10 ± .04 of the score and .10 ± .05 of the choice loss per doubling" in SAID
    less = told(paired(wider.forgotten * 1000, between.forgotten * 1000))
    assert less == "-1.89 ± 1.65, lower"
    assert "(-1.89 ± 1.65 nats in a thousand steps)" in SAID
    easy = {
        metric: told(paired(wide, cells["closed_host", "t1024"].shares[metric]))
        for metric, wide in cells[chain.WIDE, "t1024"].shares.items()
    }
    assert easy == {"score": "-0.11 ± 0.27, holds 0", "choice_loss": "-0.40 ± 0.40, holds 0"}
    assert "-.11 ± .27 of the score's share and -.40 ± .40 of the choice loss's" in SAID
    at_400 = FRAMES["placement"].query("step == 400 and metric == 'score'")
    early = at_400[at_400.run.str.endswith("early")].groupby("rung").value.mean()
    assert [f"{value:.2f}" for value in early] == ["0.77", "0.80"]
    assert "a score of .77 and .80 at step 400" in SAID


def test_what_streams_should_come_to_was_written_down_before_they_ran() -> None:
    """The committed predictions are still what the bursts' records say."""
    told = json.loads((DOCS / "findings" / "hosts" / "predicted_streams.json").read_text())
    every = FRAMES["hosts"].assign(sweep=FRAMES["hosts"].run.str.split("-").str[0])
    found = regimes.predicted_scores(every)
    written = {(cell["host"], cell["rate"]): cell["score"] for cell in told["cells"]}
    assert found == pytest.approx(written, abs=1e-3)
    assert (told["step"], told["steps"]) == (regimes.STREAM_END, regimes.STREAM_STEPS)


def test_the_rank_of_streams_is_that_of_their_hosts_a_value_a_seed() -> None:
    of = {(host, rate): float(i) for i, host in enumerate(HOSTS) for rate in regimes.STREAM_RATES}
    trained = {cell: pd.Series({1: 2 * value, 2: -value}) for cell, value in of.items()}
    # At one rate of three the first seed has its two easiest hosts the other way round.
    first, second, *_ = HOSTS
    trained[first, 2], trained[second, 2] = trained[second, 2], trained[first, 2]
    ranks = regimes.rank_by_seed(trained, of)
    assert ranks.tolist() == pytest.approx([(0.8 + 1 + 1) / 3, -(0.8 + 1 + 1) / 3])


def test_the_least_loss_of_the_hosts_of_facts_is_that_of_their_entropy(tmp_path: Path) -> None:
    for num, least in regimes.LEAST.items():
        (made,) = prepare_facts(num, tmp_path / str(num), num_tokens=4 * num).sources
        assert made["entropy"] - made["first"] / 32 == pytest.approx(least, abs=1e-4)


def test_a_chapter_that_stands_on_another_says_which_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        confirm("regimes", tmp_path / "runs", out=None, jobs=1, console=Console())
    assert caught.value.remedy == "olmo-ext confirm --chapter hosts"
    assert not (tmp_path / "runs").exists()


def test_every_interval_in_the_prose_of_chapter_5_stands_in_one_of_its_tables() -> None:
    chapter = TEXT[TEXT.index("# Chapter 5:") :]
    parts = re.split(r"<!-- (?:table: \w+|end) -->", chapter)
    prose, tables = " ".join(parts[::2]), " ".join(parts[1::2])
    told = re.findall(r"(\d*\.\d+) ± (\d*\.\d+)", prose)
    assert len(told) > 10
    for both in told:
        number = " ± ".join(f"0{one}" if one[0] == "." else one for one in both)
        assert number in tables, number

"""The report is whole, self-contained and honest about what is missing."""

import json
import math
import re
import shutil
from io import StringIO

import pandas as pd
import pytest
from refusals import refuses
from rich.console import Console
from typer.testing import CliRunner

from data_injection.errors import ConfigError
from eval.figures import index as figures
from eval.figures.curves import curves
from eval.figures.heatmap import heatmap
from eval.figures.index import Drawing, draw_figures
from eval.records import RecordWriter, read_records
from eval.report.page import answer
from eval.report.tables import print_cells
from eval.report.write import load_runs, write_report
from eval.scores.cells import cells
from eval.scores.staircase import learned_per_rung
from launch.cli import app

SCORES = {"w16": (0.9, 0.1), "w32": (0.95, 0.7)}
RATES = (4.0, 1.0)


def records(rung, *, seed=0, steps=(0, 100), run=None, family="comparison", protocol="mixture"):
    for step in steps:
        shared = {
            "run": run or f"{rung}-s{seed}",
            "rung": rung,
            "params": int(rung[1:]) * 1000,
            "seed": seed,
            "plan_hash": "hash-1",
            "protocol": protocol,
            "step": step,
            "tokens": step * 2048,
        }
        nothing = {"task": "", "family": "", "rate_per_step": 0.0, "exposures_per_example": 0.0}
        yield shared | nothing | {"split": "train", "metric": "train_loss", "value": 5.0}
        for rate, score in zip(RATES, SCORES[rung], strict=True):
            task = {
                "task": f"t{rate:g}",
                "family": family,
                "rate_per_step": rate,
                "exposures_per_example": rate * step / 50,
            }
            values = {"score": score * step / 100, "label_accuracy": score, "accuracy": score}
            for split in ("train", "test"):
                for metric, value in (
                    values | {"label_loss": 1 - score, "label_entropy": 0.8}
                ).items():
                    rest = {"split": split, "metric": metric, "value": value, "subset": "all"}
                    yield shared | task | rest | {"low": value - 0.05, "high": value + 0.05}


def looks_inside(rung, *, steps=(0, 100)):
    """What the callbacks features, interference and retention write beside the scores."""
    for step in steps:
        task = {
            **{"run": f"{rung}-s0", "rung": rung, "params": int(rung[1:]) * 1000, "seed": 0},
            **{"plan_hash": "hash-1", "protocol": "mixture", "step": step, "tokens": step * 2048},
            **{"task": "t4", "family": "comparison", "rate_per_step": 4.0},
            **{"exposures_per_example": 4.0 * step / 50},
        }
        feature = task | {"split": "", "group": "order", "units": 1}
        for layer in (0, 1):
            for metric, value in {
                "order_r2": 0.4,
                "order_r2_null99": 0.2,
                "probe_count": 1,
            }.items():
                yield feature | {"layer": layer, "metric": metric, "value": value}
        yield feature | {"metric": "probe_count", "value": 1, "present": [1]}
        place = task | {"split": "all", "group": "model", "n": 100, "dim": 100}
        for metric in ("cos_g_nt", "cos_g_t_label", "cos_update"):
            nulls = {"null_labels": 0.1, "null_random": 0.0, "random_spread": 0.1, "perp": 0.05}
            yield place | nulls | {"metric": metric, "value": 0.2}
        yield place | {"metric": "norm_g_r", "value": 1.0, "perp_share": 0.5}
        burst = task | {"split": "test", "subset": "all", "burst": 1, "instances": 50}
        burst |= {"burst_step": 60, "gap": 50, "variant": "", "schedule": "burst every 50"}
        yield burst | {"step": 60, "metric": "label_loss_before", "value": 2.0}
        for lag in (0, 20):
            after = {"step": 61 + lag, "lag": lag, "value": 1.0}
            yield burst | after | {"metric": "label_loss_lag"}
            yield burst | after | {"metric": "score_lag"}


def write_run(folder, rung, *, info=None, **options):
    with RecordWriter(folder / "records.jsonl") as writer:
        writer.write(records(rung, **options))
    if info is not None:
        (folder / "run.json").write_text(json.dumps(info))


@pytest.fixture
def sweep(tmp_path):
    for rung in SCORES:
        info = {"num_steps": "100", "torch": "2.13.0", "git_commit": "8c95b27", "host": rung}
        write_run(tmp_path / rung, rung, info=info)
    return tmp_path


def test_the_page_holds_every_figure_and_loads_nothing(sweep):
    page = write_report(sweep).read_text()
    for name in ("heatmap.png", "curves.png", "training.png", "train_test.png"):
        assert (sweep / name).read_bytes().startswith(b"\x89PNG")
        assert f'<figure id="{name}">' in page
    assert page.count("<svg") == page.count("<figure") == 4
    # The namespaces of SVG are names, and clip paths are of the page itself.
    alone = re.sub(r'xmlns(:xlink)?="[^"]*"|base64,[A-Za-z0-9+/=\s]+|url\(#\w+\)', "", page)
    assert "http:" not in alone.replace('<meta http-equiv="Content-Security-Policy"', "")
    assert not re.search(r"https|<(link|iframe|script [^>]*src)|@import|url\(", alone)
    assert page.count("<script") == 1
    assert "default-src 'none'" in page
    turning = set(re.findall(r"var\((--c\w{6})", page))
    assert {"--c1a1a1a", "--c440154"} <= turning == set(re.findall(r"(--c\w{6}):#\w{6}", page))


@pytest.fixture
def looked_inside(sweep):
    for rung in SCORES:
        with RecordWriter(sweep / rung / "records.jsonl") as writer:
            writer.write(looks_inside(rung))
    return sweep


def test_what_callbacks_measured_is_drawn_and_explained(looked_inside):
    page = write_report(looked_inside).read_text()
    for name in ("features", "interference", "forgetting"):
        assert f"{name}.png, {name}.csv" in page
        assert len(pd.read_csv(looked_inside / f"{name}.csv"))
    for symbol in ("g_r is", "g_nt is", "g_t that", "perp:"):
        assert symbol in page
    for said in ("The study&#39;s Fig. 7", "The study&#39;s Fig. 9", "The study&#39;s Fig. 8"):
        assert said in page
    assert "with the task&#39;s labels permuted" in page
    assert not (looked_inside / "gaps.png").exists()


def test_cells_and_curves_ignore_what_other_callbacks_measured(sweep, looked_inside):
    frame = read_records(looked_inside)
    scores = frame[frame.subset.notna() | (frame.task == "")].drop(
        columns=["layer", "group", "units", "present", "lag", "burst", "perp"]
    )
    scores = scores[~scores.metric.str.startswith("label_loss_") & (scores.metric != "score_lag")]
    assert len(scores) < len(frame)
    pd.testing.assert_frame_equal(cells(frame), cells(scores))
    drawn, alone = (
        [line.get_xydata().tolist() for axis in curves(some).axes for line in axis.lines]
        for some in (frame, scores)
    )
    assert drawn == alone


def test_a_figure_that_the_records_cannot_give_is_left_out_and_any_other_error_is_not(
    sweep, monkeypatch
):
    def lacks(frame):
        raise ConfigError("records hold none of it")

    def breaks(frame):
        raise KeyError("a bug")

    frame = read_records(sweep)
    drawn = [one.name for one in draw_figures(frame)]
    assert drawn == ["heatmap.png", "curves.png", "training.png", "train_test.png"]
    monkeypatch.setattr(figures, "FIGURES", (Drawing("a.png", "A", lacks, ""),))
    assert draw_figures(frame) == []
    monkeypatch.setattr(figures, "FIGURES", (Drawing("a.png", "A", breaks, ""),))
    with pytest.raises(KeyError, match="a bug"):
        draw_figures(frame)


def test_one_gap_is_no_comparison_of_gaps():
    """A task at a rate of 1 or more has gap 1 in any run."""
    frame = frame_of(1).assign(gap=1.0, variant="", schedule="even")
    assert "gaps.png" not in [one.name for one in draw_figures(frame)]
    bursts = frame.assign(gap=10.0, run=frame.run + "-n10", plan_hash="hash-2")
    both = pd.concat([frame, bursts], ignore_index=True)
    assert "gaps.png" in [one.name for one in draw_figures(both)]


def test_the_page_answers_the_question_with_its_caveats(sweep):
    page = " ".join(write_report(sweep).read_text().split())
    sure = (
        "Provisionally yes, from fewer than 3 seeds in some cells: more cells are learned as size"
    )
    assert f"{sure} grows (1 of 2 at w16, 2 of 2 at w32)" in page
    assert "4 (score 0.95), 1 (score 0.70)" in page
    for caveat in ("Rare must not mean unseen", "like tasks can transfer", "one seed is one draw"):
        assert caveat in page
    assert "(label accuracy - majority) / (1 - majority)" in page


def test_what_was_planned_trained_audited_and_spent_stands_in_the_page(sweep):
    tasks = {"t4": {"per_step": 4.0, "instances": 400}}
    (sweep / "w16" / "run.json").write_text(json.dumps({"num_steps": 100, "tasks": tasks}))
    lines = [{"step": step, "metric": "steps_per_second", "value": 2.0} for step in (50, 100)]
    (sweep / "w16" / "speed.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    verdict = {"check": "rows", "status": "ok", "said": "all 400 agree"}
    audit = {"step": 100, "plan_hash": "of another", "verdicts": [verdict]}
    (sweep / "w16" / "audit.json").write_text(json.dumps(audit))
    page = write_report(sweep).read_text()
    assert "<td>400</td><td>no plan.json beside the records</td>" in page
    assert "<td>100 (of another plan)</td><td>rows</td><td>ok</td><td>all 400 agree</td>" in page
    assert "<td>0.0139</td><td>4,096</td>" in page  # 50 s; 2 steps of 2,048 tokens a second
    speeds = pd.read_csv(sweep / "training.csv").query("metric == 'tokens_per_second'")
    assert speeds.value.tolist() == [4096, 4096]


def test_provenance_shows_the_runs_and_everything_in_run_json(sweep):
    page = write_report(sweep, command="olmo-ext report X").read_text()
    for text in ("hash-1", "git_commit", "8c95b27", "torch", "2.13.0", "olmo-ext report X"):
        assert text in page


def test_the_tables_are_written_whole_beside_the_page_and_no_temporary_file_stays(sweep, tmp_path):
    out = tmp_path / "out"
    assert write_report(sweep, out) == out / "report.html"
    expected = {"report.html", "heatmap.png", "cells.csv", "cells.md", "records.csv"}
    drawn = ("curves", "training", "train_test")
    expected |= {f"{name}.{kind}" for name in drawn for kind in ("png", "csv")}
    assert {path.name for path in out.iterdir()} == expected
    assert len(pd.read_csv(out / "cells.csv")) == 4
    assert len(pd.read_csv(out / "records.csv")) == len(read_records(sweep))


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    write_run(tmp_path / "a", "w16", run=evil, family=evil, info={evil: evil})
    page = write_report(tmp_path, command=evil).read_text()
    assert page.count("<script") == 1
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;") >= 5


def test_a_single_run_is_reported_without_a_verdict_on_size(tmp_path):
    write_run(tmp_path, "w16")
    page = write_report(tmp_path).read_text()
    assert "Cannot say: one size only" in page
    assert "No run.json beside the records" in page


def test_a_record_file_alone_is_reported_beside_itself(tmp_path):
    write_run(tmp_path, "w16")
    assert write_report(tmp_path / "records.jsonl") == tmp_path / "report.html"


def test_a_partial_sweep_says_which_runs_are_unfinished_and_why(sweep):
    write_run(sweep / "late", "w32", seed=1, steps=(0,), info={"num_steps": "100"})
    (sweep / "waiting").mkdir()
    (sweep / "waiting" / "run.json").write_text("{}")
    page = write_report(sweep).read_text()
    assert "Run w32-s1 (late) is unfinished: at step 0 of 100 planned." in page
    assert "Run waiting (waiting) is unfinished: no task measured yet." in page
    assert "Run w16-s0" not in page
    assert "Caution: not all sizes stand at the same step" in page


def test_a_run_whose_scores_are_undefined_is_named_since_its_rung_is_read_before(tmp_path):
    write_run(tmp_path / "a", "w16", seed=0)
    diverged = list(records("w16", seed=1))
    for row in diverged:
        if row["step"] == 100 and row["task"]:
            row |= dict.fromkeys(("value", "low", "high"), math.nan) | {"diverged": True}
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(diverged)
    page = write_report(tmp_path).read_text()
    assert "unfinished: from step 100 on a score is undefined, as of a diverged model." in page


def test_a_task_whose_scores_are_all_undefined_is_no_run_of_sequences(tmp_path):
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write([row | {"value": math.nan} for row in records("w16") if row["task"]])
    with refuses(key="records", rule="no test 'score' of a task with labels"):
        write_report(tmp_path)


def test_without_a_planned_length_a_run_is_measured_against_its_rung(tmp_path):
    write_run(tmp_path / "a", "w16", seed=0)
    write_run(tmp_path / "b", "w16", seed=1, steps=(0,))
    assert (
        "at step 0 of 100 reached by another run of the rung" in write_report(tmp_path).read_text()
    )


def test_runs_of_one_name_in_two_folders_do_not_replace_each_other(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), "w16", seed=seed, run="same")
    write_report(tmp_path)
    assert list(pd.read_csv(tmp_path / "cells.csv").n_seeds) == [2, 2]


def test_a_linked_run_is_reported_and_what_a_link_misses_is_named(sweep, tmp_path_factory):
    """Moved to scratch and linked back; a link to the sweep itself ends, one to nothing is said."""
    moved = sorted(path.parent for path in sweep.rglob("records.jsonl"))[0]
    scratch = tmp_path_factory.mktemp("scratch") / "moved"
    before = len(load_runs(sweep)[0])
    shutil.move(moved, scratch)
    moved.symlink_to(scratch)
    (sweep / "loop").symlink_to(sweep)
    (sweep / "gone").symlink_to(scratch / "nowhere")
    frame, runs = load_runs(sweep)
    assert len(frame) == before
    assert str(moved.relative_to(sweep)) in {run.folder for run in runs}
    done = CliRunner().invoke(app, ["report", str(sweep)])
    assert done.exit_code == 0, done.output
    assert "gone: a link to" in "".join(done.output.splitlines())
    assert "loop" not in done.output


def test_an_unreadable_run_json_does_not_cost_the_report(tmp_path):
    write_run(tmp_path, "w16")
    (tmp_path / "run.json").write_text('{"torn')
    assert "is not JSON" in write_report(tmp_path).read_text()


def test_a_folder_without_records_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="train a run"):
        write_report(tmp_path)


@pytest.mark.parametrize("kept", [0, 1])
def test_records_without_a_task_measurement_are_an_error_with_a_remedy(tmp_path, kept):
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        writer.write(list(records("w16"))[:kept])
    with refuses(
        key=f"the records below {tmp_path}", rule="no measurement of a task", remedy="let the run"
    ):
        write_report(tmp_path)


def frame_of(seeds):
    return pd.DataFrame([r for rung in SCORES for s in range(seeds) for r in records(rung, seed=s)])


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_every_heatmap_cell_shows_its_value_exposures_and_protocol():
    shown = texts(heatmap(cells(frame_of(1))))
    assert {"0.90", "0.10", "0.95", "0.70"} <= set(shown)
    assert shown.count("8 exp./ex.\nmixture") == 4  # rate 4: two rungs, in both panels
    assert any("1 seed (provisional), step 100, 205K tokens" in text for text in shown)
    assert any("0 = majority guessing" in text for text in shown)
    assert "4\n2.0e-3" in shown


def test_the_half_interval_stands_in_a_heatmap_of_several_seeds_only():
    assert any(text.startswith("±0.") for text in texts(heatmap(cells(frame_of(3)))))
    assert not any(text.startswith("±") for text in texts(heatmap(cells(frame_of(1)))))


def test_learned_cells_are_outlined_and_provisional_ones_dashed():
    from matplotlib.patches import Rectangle

    for seeds, dashed in ((1, True), (3, False)):
        axis = heatmap(cells(frame_of(seeds))).subfigs[0].axes[0]
        outlines = [p for p in axis.patches if isinstance(p, Rectangle) and not p.get_fill()]
        assert len(outlines) == 3
        assert all((p.get_linestyle() != "-") == dashed for p in outlines)


def test_larger_rungs_stand_on_top_and_frequent_rates_left():
    axis = heatmap(cells(frame_of(1))).subfigs[0].axes[0]
    assert [label.get_text()[:3] for label in axis.get_yticklabels()] == ["w16", "w32"]
    assert [label.get_text()[0] for label in axis.get_xticklabels()] == ["4", "1"]
    assert axis.get_ylim()[0] < axis.get_ylim()[1]


def test_protocols_get_panels_of_their_own():
    single = list(records("w16", run="alone", protocol="single"))
    figure = heatmap(cells(pd.concat([frame_of(1), pd.DataFrame(single)])))
    assert len(figure.subfigs) == 2


def test_curves_have_a_panel_per_rung_a_line_per_rate_and_the_threshold():
    panels = [axis for axis in curves(frame_of(1)).axes if axis.get_visible()]
    assert len(panels) == 2
    assert all(len(axis.lines) == len(RATES) + 1 for axis in panels)
    assert all(any(set(line.get_ydata()) == {0.5} for line in axis.lines) for axis in panels)


def test_a_panel_shows_what_guessing_costs_in_its_own_family():
    frame = pd.concat([frame_of(1), frame_of(1).assign(family="copy")], ignore_index=True)
    other = (frame.metric == "label_entropy") & (frame.family == "copy")
    frame.loc[other, "value"] = 3.15
    figure = curves(frame, metric="label_loss", dashed=("label_loss", "train"))
    for axis in figure.axes:
        null = 3.15 if axis.get_title().endswith("copy, mixture") else 0.8
        assert sum(set(line.get_ydata()) == {null} for line in axis.lines) == 1
        assert len(axis.lines) == 2 * len(RATES) + 1
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert "guessing by label frequency: 0.80 to 3.15" in told


def test_curves_show_a_band_from_three_seeds_on():
    assert all(axis.collections for axis in curves(frame_of(3)).axes)
    assert not any(axis.collections for axis in curves(frame_of(2)).axes)


def test_the_terminal_table_shows_scores_marks_and_exposures():
    console = Console(file=StringIO(), width=120)
    print_cells(cells(frame_of(1)), console)
    out = console.file.getvalue()
    assert "0.70(*)" in out
    assert "0.10 " in out
    assert out.index("w32") < out.index("w16")
    assert "Provisionally yes" in out


def test_the_answer_does_not_call_a_saturated_grid_a_rise():
    frame = frame_of(3)
    frame.loc[frame.metric == "score", "value"] = 0.9
    counts = learned_per_rung(cells(frame))[0]
    assert answer(counts).startswith("No: every cell is learned at every size")


def test_the_headline_asks_only_what_the_runs_can_answer(sweep):
    both = write_report(sweep).read_text()
    one = write_report(sweep / "w16", sweep / "w16").read_text()
    for page, asked, other in (
        (both, "Do larger models learn rarer tasks?", "Which tasks are learned?"),
        (one, "Which tasks are learned?", "Do larger models learn rarer tasks?"),
    ):
        assert f"<h1>{asked}</h1>" in page
        assert other not in page

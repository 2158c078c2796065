"""olmo-ext plan: its numbers are the plan's, its warnings hold and its remedies work."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import lines_of_beats

from data_injection.corpus.prepare import prepare_embedded
from data_injection.tasks.base import Task
from launch import cli
from launch.json_file import write_json
from launch.plan import preflight
from launch.plan import warnings as advice
from launch.plan.verbs import plan as plan_verb
from launch.plan.warnings import round_up
from olmo_ext import cost
from olmo_ext.build import compile_stream
from olmo_ext.config import load_experiment

Write = Callable[..., Path]
Plan = Callable[..., tuple[int, str, dict[str, Any]]]

ONE_TASK = "injection.tasks=[{name: cmp, num_symbols: 10, schedule: {rate: RATE}}]"


@pytest.fixture
def plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Plan:
    """plan(file, *overrides, options=[...]) -> status, all output in one line, the JSON."""

    def run(file: Path, *overrides: str, options: tuple[str, ...] = ()) -> Any:
        out = tmp_path / "plan.json"
        argv = ["olmo-ext", "plan", str(file), *(f"-o{o}" for o in overrides), *options]
        if "--json" not in options:
            argv += ["--json", str(out)]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        numbers = json.loads(out.read_text()) if out.exists() else {}
        out.unlink(missing_ok=True)
        return ended.value.code or 0, " ".join((said.out + said.err).split()), numbers

    return run


def keys(numbers: dict[str, Any]) -> set[str]:
    return {warning["key"] for warning in numbers["warnings"]}


def tasks_of(file: Path) -> list[Task]:
    return compile_stream(load_experiment(file), manifest=None).plan.tasks


def host_text(file: Path, tokens: np.ndarray) -> None:
    tokens.astype(np.uint16).tofile(file.parent / "tokens.npy")


def free_token(file: Path) -> int:
    """A token of no task, to fill a corpus with."""
    used = {int(t) for task in tasks_of(file) for t in task.tokens.ravel()}
    return next(token for token in range(2, 256) if token not in used)


# -- numbers -------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_compiled_plan(write_experiment: Write, plan: Plan) -> None:
    file = write_experiment()
    stream = compile_stream(load_experiment(file), manifest=None)
    status, said, numbers = plan(file)
    assert status == 0
    assert numbers["plan_hash"] == stream.plan.hash
    assert numbers["plan_hash"] in said.replace(" ", "")
    cmp, add = numbers["tasks"]
    assert (cmp["instances"], add["instances"]) == (24, 6)
    assert cmp["exposures_per_example"] == 24 / 50
    assert add["rates"]["per_sequence"] == 0.5 / 8
    assert numbers["tokens"] == 12 * 8 * 16
    assert numbers["epochs"] == 3, "12 steps of 8 rows over 32 of the 37 rows"
    assert numbers["cost"]["num_tokens"] == numbers["tokens"]
    assert numbers["cost"]["memory"]["total"] > numbers["cost"]["memory"]["state"] > 0


def test_planted_examples_are_found_and_set_against_the_injected_ones(
    write_experiment: Write, plan: Plan
) -> None:
    file = write_experiment()
    task = tasks_of(file)[0]
    text = np.full(16 * 37, free_token(file))
    places = {5: task.train[0], 40: task.test[0], 301: task.test[1], 592 - 3: task.test[1]}
    for at, example in places.items():
        text[at : at + 3] = task.tokens[example]
    text[43] = 0  # EOS after the second
    host_text(file, text)
    status, said, numbers = plan(file)
    found = numbers["tasks"][0]["scan"]["examples"]
    assert (found["train"], found["test"], found["before_eos"]) == (1, 3, 1)
    # 4 in 592 tokens, and the run reads 1,536.
    assert found["natural_in_run"] == pytest.approx(4 * 1536 / 592)
    assert found["natural_per_injected"] == pytest.approx(4 * 1536 / 592 / 24)
    assert f"{4 * 1536 / 592 / 24:.1%} of the 24 injected ones" in said
    assert numbers["scan"] == {"corpus_tokens": 592, "scanned_tokens": 592}
    assert status == 0, "a warning is no error"
    assert "injection.seed" in keys(numbers)
    symbols = dict(
        zip(
            numbers["tasks"][0]["symbols"],
            numbers["tasks"][0]["scan"]["symbol_counts"],
            strict=True,
        )
    )
    first = int(task.tokens[task.train[0], 0])
    assert symbols[first] == np.count_nonzero(text == first)


def test_tokens_that_the_corpus_never_has_are_named(write_experiment: Write, plan: Plan) -> None:
    file = write_experiment()
    text = np.arange(16 * 37) % 256
    host_text(file, text)
    assert not any("symbols" in key for key in keys(plan(file)[2])), "the text has every token"
    missing = int(tasks_of(file)[0].symbols[3])
    text[text == missing] = free_token(file)
    host_text(file, text)
    _, said, numbers = plan(file)
    warned = [w for w in numbers["warnings"] if w["key"] == "injection.tasks.0.symbols"]
    assert len(warned) == 1
    assert f"1 of 13 tokens that the corpus never has ({missing})" in said
    # The remedy it gives.
    again = plan(file, f"injection.exclude_tokens=[{missing}]")[2]
    assert "injection.tasks.0.symbols" not in keys(again)


def test_reserved_ids_are_counted_by_kind_and_a_missing_manifest_is_said(
    write_experiment: Write, plan: Plan, tmp_path: Path
) -> None:
    file = write_experiment()
    _, said, numbers = plan(file)
    assert numbers["reserved_tokens"]["single bytes"] == 0
    assert "there is no manifest" in said
    assert "corpus" in keys(numbers)
    listed = plan(file, "injection.exclude_tokens=[7, 9, 0]")[2]
    assert listed["reserved_tokens"]["injection.exclude_tokens"] == 2, "0 is the EOS"
    assert "corpus" not in keys(listed), "the remedy was followed"

    prepare_embedded(tmp_path / "corpus", vocab_size=300, max_documents=3)

    def with_corpus(config: dict[str, Any]) -> None:
        config["corpus"] = str(tmp_path / "corpus")
        del config["train"]["data"]["paths"]
        model = config["train"]["model"]
        del model["eos_token_id"], model["pad_token_id"]
        model["vocab_size"] = model["embedding_size"] = 300

    _, said, numbers = plan(write_experiment(with_corpus))
    assert numbers["manifest"]
    assert numbers["reserved_tokens"]["single bytes"] == 256
    assert "258 ids (1 EOS, 1 padding, 256 single bytes)" in said
    assert "corpus" not in keys(numbers)


# -- warnings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rate", "steps", "symbols"])
@pytest.mark.parametrize("unit", ["per_step", "per_sequence", "per_token"])
def test_each_remedy_against_unseen_examples_works(
    write_experiment: Write, plan: Plan, way: str, unit: str
) -> None:
    scale = {"per_step": 1, "per_sequence": 8, "per_token": 128}[unit]
    task = ONE_TASK.replace("RATE", f"'2/{scale}', unit: {unit}")
    file = write_experiment()
    key = "injection.tasks.0.schedule.rate"
    _, said, numbers = plan(file, task)
    assert key in keys(numbers)
    found = re.search(r"needs a rate of (\S+) or (\S+) steps or (\d+) symbols", said)
    assert found is not None, said
    override = {
        "rate": f"{key}={found[1]}",
        "steps": f"train.max_duration={found[2]}",
        "symbols": f"injection.tasks.0.num_symbols={found[3]}",
    }[way]
    better = plan(file, task, override)[2]
    assert key not in keys(better)
    assert 1 <= better["tasks"][0]["exposures_per_example"] < 1.5


@pytest.mark.parametrize(
    ("overrides", "key", "said", "remedy"),
    [
        (
            ["injection.tasks.1.schedule.rate=1/1000"],
            "injection.tasks.1.schedule.rate",
            "add has no instance in 12 steps, one comes every 1,000",
            "injection.tasks.1.schedule.rate=5",
        ),
        (
            ["injection.tasks.0.schedule.rate=4"],
            "injection.tasks",
            "is 56% of all rows",
            "injection.tasks.0.schedule.rate=3",
        ),
        ([], "train.max_duration", "the corpus is read 3 times", "train.max_duration=4"),
        (
            ["train.scheduler.t_warmup=12"],
            "train.scheduler.t_warmup",
            "never reaches its peak; set it to 1,",
            "train.scheduler.t_warmup=1",
        ),
        (
            ["injection.tasks.0.schedule={kind: random, rate: 2, start: 0, stop: 20}"],
            "injection.tasks.0.schedule.stop",
            "the run ends at step 12",
            "injection.tasks.0.schedule.stop=12",
        ),
        (
            ["injection.tasks.0.schedule={kind: trace, rate: null, steps: [0, 1]}"],
            "injection.tasks.0.schedule.steps",
            "is 2 instances: each train example of cmp is seen 0.04 times",
            "injection.tasks.0={name: cmp, num_symbols: 2, schedule: {kind: trace, steps: [0, 1]}}",
        ),
    ],
)
def test_a_warning_says_what_is_wrong_and_goes_when_it_is_not(
    write_experiment: Write, plan: Plan, overrides: list[str], key: str, said: str, remedy: str
) -> None:
    file = write_experiment(lambda c: c["callbacks"].update(task_eval=None))
    status, text, numbers = plan(file, *overrides)
    assert status == 0
    assert key in keys(numbers)
    assert said in text
    again = plan(file, *overrides, remedy)[2]
    assert key not in keys(again)


def test_sequences_within_the_rows_begin_none_of_them(
    write_experiment: Write, plan: Plan, tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text('{"tokens": [5, 6, 7], "copies": 100}\n')
    task = {"name": "seq", "family": "sequences", "params": {"file": str(tmp_path / "s.jsonl")}}

    def alone(config: dict[str, Any]) -> None:
        config["injection"]["tasks"] = [task]
        config["callbacks"] = {"task_eval": {"every": 6}}

    _, said, numbers = plan(write_experiment(alone))
    assert numbers["tasks"][0]["instances"] == 100  # in 96 rows
    assert "injection.tasks" not in keys(numbers), said


def test_sequences_that_a_measure_leaves_out_are_warned_of(
    write_experiment: Write, plan: Plan, tmp_path: Path
) -> None:
    """Injected ones in a group, their twins in another; and of no more tokens than the prefix."""
    task = {"name": "seq", "family": "sequences", "params": {"file": str(tmp_path / "s.jsonl")}}

    def alone(config: dict[str, Any]) -> None:
        config["injection"]["tasks"] = [task]

    file = write_experiment(alone)
    sides: list[dict[str, Any]] = [{"copies": 2}, {"twin": True}]

    def told(groups: str, length: int, prefix: int) -> tuple[str, set[str]]:
        lines = [
            json.dumps(side | {"group": group, "tokens": [5 + i] * length})
            for i, (side, group) in enumerate(zip(sides, groups, strict=True))
        ]
        (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
        _, said, numbers = plan(
            file, f"callbacks.task_eval.prefix={prefix}", options=("--no-scan",)
        )
        return said, keys(numbers)

    said, found = told("ab", 4, 4)
    assert {"injection.tasks.0.params.file", "callbacks.task_eval.prefix"} <= found
    assert "seq, 1 of whose 2 sequences have no twin in their group" in said
    assert "is 4: 2 of the 2 sequences of seq have no token after it" in said
    assert "callbacks.task_eval.prefix" not in told("ab", 4, 3)[1]
    assert not {"injection.tasks.0.params.file", "callbacks.task_eval.prefix"} & told("aa", 5, 4)[1]


def test_a_rate_of_zero_is_meant(write_experiment: Write, plan: Plan) -> None:
    numbers = plan(write_experiment(), "injection.tasks.0.schedule.rate=0")[2]
    assert "injection.tasks.0.schedule.rate" not in keys(numbers)
    assert numbers["tasks"][0]["scan"]["examples"]["natural_per_injected"] is None


def test_what_does_not_fit_a_gpu_is_warned_of_with_the_rows_that_do(
    write_experiment: Write, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_experiment()
    memory = plan(file)[2]["cost"]["memory"]
    a_row = (memory["activations"] + memory["logits"]) / 2
    monkeypatch.setattr(advice, "GPU_BYTES", memory["state"] + 1.5 * a_row)
    _, said, numbers = plan(file)
    assert "train.device_train_microbatch_size" in keys(numbers)
    assert "set it to 1 or less" in said
    smaller = plan(file, "train.device_train_microbatch_size=1")[2]
    assert "train.device_train_microbatch_size" not in keys(smaller)
    monkeypatch.setattr(advice, "GPU_BYTES", memory["state"])
    assert "distributed_strategy=fsdp" in plan(file)[1]
    assert "rung" not in keys(plan(file)[2])
    monkeypatch.setattr(advice, "GPU_BYTES", memory["start"] - 1)
    assert "rung" in keys(plan(file)[2]), "nothing that a step does would help"


@pytest.mark.parametrize(("value", "rounded"), [(2.0, 2.0), (2.0833, 2.09), (1.234e-9, 1.24e-9)])
def test_a_remedy_is_rounded_up(value: float, rounded: float) -> None:
    assert round_up(value) == pytest.approx(rounded, rel=1e-12)
    assert round_up(value) >= value * (1 - 1e-12)


# -- options -------------------------------------------------------------------------------------


def test_a_sample_is_called_one_and_too_small_a_one_warned_of(
    write_experiment: Write, plan: Plan
) -> None:
    file = write_experiment()
    _, said, numbers = plan(file, options=("--scan-tokens", "100"))
    assert numbers["scan"] == {"corpus_tokens": 592, "scanned_tokens": 100}
    assert "an evenly spread sample: 16.89% of 592" in said
    assert "cannot show that natural examples" in said
    whole = plan(file, options=("--scan-tokens", "592"))
    assert "sample" not in whole[1]
    assert "--scan-tokens" not in keys(whole[2])


def test_no_scan_reads_no_token(
    write_experiment: Write, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("scanned")

    monkeypatch.setattr(preflight, "scan_corpus", refuse)
    status, said, numbers = plan(write_experiment(), options=("--no-scan",))
    assert status == 0
    assert "corpus not scanned" in said
    assert numbers["scan"] is None
    assert "scan" not in numbers["tasks"][0]


def test_a_run_without_tasks_has_a_cost_and_nothing_to_scan(
    write_experiment: Write, plan: Plan
) -> None:
    file = write_experiment(lambda c: c["callbacks"].update(task_eval=None))
    status, said, numbers = plan(file, "injection.tasks=[]")
    assert status == 0
    assert "there are no tasks" in said
    assert numbers["cost"]["flops"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "3"), "--gpus must divide train.global_train_batch_size 8, got 3"),
        (("--mfu", "40"), "--mfu must be in (0, 1], got 40"),
        (("--peak-tflops", "0"), "--peak-tflops must be positive"),
        (("--json", "nowhere/plan.json"), "there is no folder nowhere"),
        (("-o", "train.trained=1"), "train.trained"),
    ],
)
def test_bad_input_is_status_2_and_one_message(
    write_experiment: Write, plan: Plan, options: tuple[str, ...], said: str
) -> None:
    status, text, numbers = plan(write_experiment(), options=options)
    assert status == 2
    assert said in text
    assert not numbers


def test_the_options_change_the_hours(write_experiment: Write, plan: Plan) -> None:
    file = write_experiment()
    one = plan(file)[2]["cost"]
    options = ("--gpus", "4", "--peak-tflops", "100", "--mfu", "0.2")
    other = plan(file, options=options)[2]["cost"]
    assert other["hours"] == pytest.approx(one["hours"] * 989 * 0.4 / (4 * 100 * 0.2))
    assert other["gpu_hours"] == pytest.approx(other["hours"] * 4)


def test_the_defaults_of_the_command_are_those_of_the_estimate() -> None:
    defaults = inspect.signature(plan_verb).parameters
    assert defaults["peak_tflops"].default == cost.PEAK_TFLOPS
    assert defaults["mfu"].default == cost.MFU


def test_the_json_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == "old"
    write_json(path, {"x": 1, "none": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1, "none": None}
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_in_the_scan_ends_with_one_message(
    write_experiment: Write, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "scan_corpus", interrupt)
    status, said, numbers = plan(write_experiment())
    assert (status, numbers) == (130, {})
    assert said == "interrupted; --no-scan or --scan-tokens takes less time"


def test_without_a_terminal_the_scan_says_how_far_it_is(
    write_experiment: Write,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan, spoken = preflight.scan_corpus, lines_of_beats(monkeypatch)

    def slowly(*args: Any, progress: Any, **options: Any) -> Any:
        progress(296)
        spoken()
        return scan(*args, progress=progress, **options)

    monkeypatch.setattr(preflight, "scan_corpus", slowly)
    _, said, _ = plan(write_experiment())
    assert "scanning the corpus, tokens: 296 of 592" in said

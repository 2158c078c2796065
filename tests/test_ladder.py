"""The ladder's files: complete, alike but for scale, of the sizes that their README states.

python tests/test_ladder.py        # prints the README's tables
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from olmo.config import ModelConfig
from olmo.model import OLMo
from refusals import refuses

from data_injection.corpus.encoder import parse_tokenizer
from data_injection.corpus.prepare import prepare_corpus, prepare_embedded
from data_injection.errors import ConfigError
from eval.checkpoints.checkpoint import find_checkpoints
from eval.records import read_records
from launch.grid import load_sweep
from launch.runs import plan_runs
from olmo_ext.build import compile_stream
from olmo_ext.checks import check_device
from olmo_ext.config import ExperimentConfig, load_experiment
from olmo_ext.numerics.kernels import has_flash_attention
from olmo_ext.train import train

LADDER = Path(__file__).parent.parent / "configs" / "olmo_4M_to_4B"
PRESETS = ("ladder", "paper")
RUNGS = ("4M", "20M", "300M", "1B", "4B")
FILES = list(product(PRESETS, RUNGS))

NAMES = {"train.run_name", "train.save_folder"}
BATCH = {"train.global_train_batch_size", "train.device_train_microbatch_size"}
SCALE = {
    *("rung", "train.distributed_strategy", "train.optimizer.learning_rate"),
    *("train.model.d_model", "train.model.n_heads", "train.model.n_layers"),
    *NAMES,
    *BATCH,
}
SMOKE = {
    *("corpus", "train.precision", "train.max_duration", "train.scheduler.t_warmup"),
    *("train.model.max_sequence_length", "train.model.vocab_size", "train.model.embedding_size"),
    *("train.model.eos_token_id", "train.model.flash_attention"),
    *("train.data.num_workers", "train.data.pin_memory"),
    *("train.save_interval_unsharded", "train.console_log_interval"),
    *("injection.tasks.0.schedule.rate", "callbacks.task_eval.every"),
}

PUBLISHED = {
    "4M": (64, 8, 8, 3.7, 7.0, 1.4e-2, 32),
    "20M": (192, 8, 16, 19.1, 28.8, 8.4e-3, 64),
    "300M": (1024, 16, 16, 320.0, 371.5, 3.3e-3, 320),
    "1B": (2048, 16, 16, 1176.8, 1279.9, 2.1e-3, 704),
}
"""AI2's ladder: d_model, heads, layers, millions of parameters without the input embedding and in
total, learning rate, global batch."""

GRID = ("1024", "256", "64", "16", "4", "1", "1/10")
"""The study's frequencies, instances per step of 4,194,304 tokens."""


def raw(name: str) -> dict[str, Any]:
    """A file's settings as written, {dotted key: value}."""

    def flatten(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict | list) or not value:
            return {prefix: value}
        items = value.items() if isinstance(value, dict) else enumerate(value)
        pairs = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in items]
        return {key: value for pair in pairs for key, value in pair.items()}

    return flatten(yaml.safe_load((LADDER / f"{name}.yaml").read_text()), "")


def differing(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    missing = object()
    return {key for key in a | b if a.get(key, missing) != b.get(key, missing)}


@cache
def counts(rung: str) -> tuple[int, int]:
    """Parameters without the input embedding and in total, of the model that the file describes."""
    section = yaml.safe_load((LADDER / "ladder" / f"{rung}.yaml").read_text())["train"]["model"]
    model = OLMo(ModelConfig(**section | {"flash_attention": False, "init_device": "meta"}))
    assert all(p.is_meta for p in model.parameters())
    return model.num_params(include_embedding=False), model.num_params()


def reckoned_gb(preset: str, rung: str) -> float:
    """Peak GB (1e9 bytes) a GPU of 8, as the README reckons it."""
    cfg = raw(f"{preset}/{rung}")
    d_model, layers = cfg["train.model.d_model"], cfg["train.model.n_layers"]
    rows = cfg["train.device_train_microbatch_size"]
    if cfg["train.distributed_strategy"] == "ddp":
        state = 22 * counts(rung)[1]
    else:
        block, embeddings = 16 * d_model**2 + 2 * d_model, 2 * 50304 * d_model + d_model
        state = 2 * counts(rung)[1] + 2 * (embeddings + 2 * block) + 6 * (embeddings + block)
    return (state + rows * 2048 * (12 * 50304 + 66 * d_model * layers)) / 1e9


def interference_gb(rung: str, cfg: dict[str, Any]) -> float:
    """What the callback holds over the whole model with one task: six copies of a GPU's shard."""
    return 6 * 4 * counts(rung)[1] / (1 if cfg["train.distributed_strategy"] == "ddp" else 8) / 1e9


def size_table() -> str:
    lines = [
        "| rung | d_model | heads | layers | parameters | with input embedding | lr | strategy |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for rung in RUNGS:
        cfg = raw(f"paper/{rung}")
        shape = [cfg[f"train.model.{key}"] for key in ("d_model", "n_heads", "n_layers")]
        sizes = [f"{count:,}" for count in counts(rung)]
        rate = f"{cfg['train.optimizer.learning_rate']:.1e}"
        row = [rung, *shape, *sizes, rate, cfg["train.distributed_strategy"]]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def batch_table() -> str:
    lines = [
        "| preset | rung | batch (rows) | micro-batch | GB a GPU | with `interference` "
        "| tokens a step | tokens |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for preset, rung in FILES:
        cfg = raw(f"{preset}/{rung}")
        batch, steps = cfg["train.global_train_batch_size"], cfg["train.max_duration"]
        micro, tokens = cfg["train.device_train_microbatch_size"], batch * 2048
        gb = reckoned_gb(preset, rung)
        row = [preset, rung, batch, micro, f"{gb:.0f}", f"{gb + interference_gb(rung, cfg):.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} | {tokens:,} | {tokens * steps:,} |")
    return "\n".join(lines)


def frequency_table() -> str:
    lines = [
        "| a step | `rate` (per_token) | a token | a row | task tokens a token | exposures |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for text in GRID:
        per_step = Fraction(text)
        per_token = per_step / 2048**2
        units = [float(per_token), float(per_token * 2048), float(per_token * 4)]
        exposures = float(per_step * 50_000 / 5_000)
        row = [f"{float(per_step):g}", f'`"{per_token}"`', *(f"{unit:.2g}" for unit in units)]
        lines.append(f"| {' | '.join(row)} | {exposures:,g} |")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def dolma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of Dolma-format text under the ladder's tokenizer."""
    folder = tmp_path_factory.mktemp("dolma")
    text = " ".join(f"line {i} of a document," for i in range(40))
    lines = [json.dumps({"id": str(i), "text": text, "source": "c4"}) for i in range(80)]
    (folder / "c4-0000.jsonl").write_text("\n".join(lines))
    prepare_corpus([folder], folder / "corpus", name="dolma", tokenizer="dolma-v1_5")
    return folder / "corpus"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare memmap with one batch of the study's size."""
    path = tmp_path_factory.mktemp("tokens") / "part-000-00000.npy"
    ids = np.random.default_rng(0).integers(2, 50_280, size=2048 * 2048, dtype=np.uint16)
    ids.tofile(path)
    return path


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def load(preset: str, rung: str, *overrides: str) -> ExperimentConfig:
    return load_experiment(LADDER / preset / f"{rung}.yaml", list(overrides))


@pytest.mark.parametrize(("preset", "rung"), FILES)
def test_a_file_loads_and_its_corpus_agrees(preset: str, rung: str, dolma: Path) -> None:
    experiment = load(preset, rung, f"corpus={dolma}")
    model = experiment.train.model
    assert experiment.rung == rung
    assert experiment.protocol == "single"
    assert (model.eos_token_id, model.pad_token_id) == (50279, 1)
    assert (model.vocab_size, model.embedding_size) == (50280, 50304)
    assert experiment.train.data.memmap_dtype == "uint16"
    assert experiment.train.ddp is not None
    assert experiment.train.fsdp is not None
    heads, head_dim = model.n_heads, model.d_model // model.n_heads
    assert heads * head_dim == model.d_model
    assert head_dim % 2 == 0, "RoPE turns pairs"


def test_the_eos_id_is_the_end_of_text(dolma: Path) -> None:
    tokenizer = parse_tokenizer((dolma / "tokenizer.json").read_bytes(), where="")
    assert tokenizer.id_to_token(50279) == "<|endoftext|>"
    assert tokenizer.decode([50279], skip_special_tokens=False) == "<|endoftext|>"
    assert tokenizer.id_to_token(0) == "|||IP_ADDRESS|||"


@pytest.mark.parametrize("rung", PUBLISHED)
def test_a_rung_is_the_published_one(rung: str) -> None:
    cfg = raw(f"ladder/{rung}")
    d_model, heads, layers, without, total, rate, batch = PUBLISHED[rung]
    shape = [cfg[f"train.model.{key}"] for key in ("d_model", "n_heads", "n_layers")]
    assert shape == [d_model, heads, layers]
    assert [round(count / 1e6, 1) for count in counts(rung)] == [without, total]
    assert cfg["train.optimizer.learning_rate"] == rate
    assert cfg["train.global_train_batch_size"] == batch


def test_the_largest_learning_rate_follows_the_trend_of_the_others() -> None:
    rates = {rung: raw(f"paper/{rung}")["train.optimizer.learning_rate"] for rung in RUNGS}
    scaled = [rates[rung] * counts(rung)[0] ** (1 / 3) for rung in PUBLISHED]
    assert max(scaled) / min(scaled) < 1.05, "lr ~ N^(-1/3) within the table's rounding"
    fitted = np.exp(np.mean(np.log(scaled))) * counts("4B")[0] ** (-1 / 3)
    assert f"{fitted:.1e}" == f"{rates['4B']:.1e}"


@pytest.mark.parametrize("preset", PRESETS)
def test_rungs_differ_in_scale_alone(preset: str) -> None:
    first = raw(f"{preset}/4M")
    for rung in RUNGS[1:]:
        assert differing(first, raw(f"{preset}/{rung}")) <= SCALE


@pytest.mark.parametrize("rung", RUNGS)
def test_presets_differ_in_the_batch_alone(rung: str) -> None:
    ladder, paper = raw(f"ladder/{rung}"), raw(f"paper/{rung}")
    assert differing(ladder, paper) <= BATCH | NAMES
    assert paper["train.global_train_batch_size"] == 2048


def test_the_smoke_file_differs_from_the_rungs_as_it_says() -> None:
    assert differing(raw("smoke"), raw("ladder/4M")) <= SCALE | SMOKE


def test_no_two_runs_share_a_folder_or_a_name() -> None:
    files = [*(f"{preset}/{rung}" for preset, rung in FILES), "smoke"]
    for key in NAMES:
        assert len({raw(name)[key] for name in files}) == len(files)


@pytest.mark.parametrize(("preset", "rung"), FILES)
def test_a_micro_batch_divides_the_share_of_a_gpu_and_fits(preset: str, rung: str) -> None:
    cfg = raw(f"{preset}/{rung}")
    batch, micro = (cfg[key] for key in sorted(BATCH, reverse=True))
    for world in (1, 2, 4, 8):
        assert batch % world == 0
        share = batch // world
        assert share <= micro or share % micro == 0
    assert reckoned_gb(preset, rung) < 0.8 * 80


@pytest.mark.parametrize("table", [size_table, batch_table, frequency_table])
def test_the_readmes_tables_regenerate_from_the_files(table: Any) -> None:
    assert table() in (LADDER / "README.md").read_text(), table()


@pytest.mark.usefixtures("no_cuda")
class TestDryRun:
    """On a machine without a GPU and without Dolma."""

    @pytest.mark.parametrize(("preset", "rung"), FILES)
    def test_it_checks_everything_and_allocates_no_model(
        self,
        preset: str,
        rung: str,
        tokens: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def build_model(*args: object) -> None:
            raise AssertionError("a dry run must not build a model of 16 GB")

        monkeypatch.setattr("olmo_ext.prepare.build_model", build_model)
        monkeypatch.chdir(tmp_path)
        overrides = ["corpus=", f"train.data.paths=[{tokens}]", "train.precision=fp32"]
        train(load(preset, rung, *overrides), dry_run=True)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("preset", "rung"), FILES)
    def test_without_the_corpus_it_says_how_to_make_one(
        self, preset: str, rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError) as error:
            load(preset, rung)
        for words in ("no folder dolma", "olmo-ext prepare", "-o corpus=", "docs/data.md"):
            assert words in str(error.value)

    def test_without_a_gpu_it_says_so(self, tokens: Path) -> None:
        with pytest.raises(ConfigError) as error:
            train(load("ladder", "4M", "corpus=", f"train.data.paths=[{tokens}]"), dry_run=True)
        assert (error.value.key, error.value.value) == ("train.precision", "amp_bf16")
        assert "CUDA machine" in error.value.remedy

    def test_a_corpus_below_one_batch_is_refused(self, dolma: Path) -> None:
        with refuses(
            key="the corpus", rule=("9 rows", "one batch of 2048"), remedy="a larger corpus"
        ):
            train(load("paper", "4B", f"corpus={dolma}", "train.precision=fp32"), dry_run=True)

    def test_flash_attention_is_off(self, dolma: Path) -> None:
        assert load("paper", "4B", f"corpus={dolma}").train.model.flash_attention is False


def test_flash_attention_is_on_where_it_imports_beside_cuda(
    monkeypatch: pytest.MonkeyPatch, dolma: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert not has_flash_attention()
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    experiment = load("paper", "4B", f"corpus={dolma}")
    assert experiment.train.model.flash_attention is True
    check_device(experiment, torch.device("cuda"), world_size=8)
    experiment.train.precision = "fp32"
    key, remedy = "train.model.flash_attention", "train.model.flash_attention=false"
    with refuses(key=key, value=True, rule="train.precision fp32", remedy=remedy):
        check_device(experiment, torch.device("cuda"), world_size=8)


def test_the_smoke_file_trains_saves_and_evaluates(tmp_path: Path) -> None:
    prepare_embedded(tmp_path / "corpus", vocab_size=2048, max_documents=100)
    overrides = [
        *(f"corpus={tmp_path / 'corpus'}", f"train.save_folder={tmp_path / 'run'}"),
        *("train.max_duration=4", "train.save_interval_unsharded=2"),
        "callbacks.task_eval.every=2",
    ]
    folder = train(load_experiment(LADDER / "smoke.yaml", overrides))
    assert [checkpoint.step for checkpoint in find_checkpoints(folder)] == [0, 2, 4]
    records = read_records(folder / "records.jsonl")
    assert {2, 4} <= set(records["step"])


@pytest.mark.parametrize(("name", "num_runs"), [("frequency", 210), ("matched_frequency", 75)])
def test_a_sweep_is_the_studys_grid_and_every_rate_compiles(
    name: str, num_runs: int, tokens: Path, tmp_path: Path
) -> None:
    sweep = load_sweep(LADDER / "sweeps" / f"{name}.yaml")
    assert len(sweep.points()) == num_runs
    axes = {axis: labels for axis, labels in sweep.axes.items() if axis != "seed"}
    small = replace(sweep, experiments=sweep.experiments[:1], axes=axes)
    overrides = ["corpus=", f"train.data.paths=[{tokens}]", "train.precision=fp32"]
    runs = plan_runs(small, tmp_path, overrides=overrides)
    tasks = [next(iter(run.settings["plan"]["tasks"].values())) for run in runs]
    assert {run.num_steps for run in runs} == {50_000}
    if name == "frequency":
        assert [task["family"] for task in tasks] == ["comparison"] * 7 + ["modular_addition"] * 7
        rates = [Fraction(task["schedule"]["rate_per_step"]) for task in tasks]
        assert rates == [Fraction(text) for text in GRID] * 2
    else:
        even, *bursts = (task["schedule"] for task in tasks)
        assert (even["kind"], even["rate_per_step"]) == ("even", "1")
        assert [(b["size"], b["every"]) for b in bursts] == [(n, n) for n in (10, 20, 50, 100)]


def test_a_burst_that_does_not_fit_the_ladders_batch_is_refused(tokens: Path) -> None:
    sweep = load_sweep(LADDER / "sweeps" / "matched_frequency.yaml")
    rate = "injection.tasks.0.schedule.rate=1/65536"  # one a step there too
    burst = [f"{k}={v}" for k, v in sweep.axes["gap"]["n100"].items()]
    overrides = ["corpus=", f"train.data.paths=[{tokens}]", rate, *burst]
    with refuses(key="injection.tasks[0].schedule", value=100, rule="at most 32 instances"):
        compile_stream(load("ladder", "4M", *overrides), manifest=None)


if __name__ == "__main__":
    print(size_table(), batch_table(), frequency_table(), sep="\n\n")

"""Bad input: one clear error that names key, value and remedy, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from olmo.config import (
    FSDPConfig,
    InstanceFilterConfig,
    SpeedMonitorConfig,
    TrainConfig,
    WandbConfig,
)
from refusals import Words, refuses

from data_injection.corpus.prepare import prepare_corpus
from data_injection.errors import NO_VALUE, ConfigError
from launch.grid_loader import GridLoader
from olmo_ext.callbacks.build import build_callbacks
from olmo_ext.checks import NUMBERS, num_steps, numbers
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

TWO_BIG_TASKS = "[{name: a, num_symbols: 9, schedule: {rate: 6}}, {name: b, num_symbols: 9, schedule: {rate: 3}}]"  # noqa: E501


TASKS = "injection.tasks"


@pytest.mark.parametrize(
    ("override", "key", "value", "rule", "remedy"),
    [
        ("trian.seed=1", "trian", NO_VALUE, ("not in", "'train'"), ""),
        ("train.modell.d_model=8", "train.modell", NO_VALUE, ("not in", "'model'"), ""),
        ("train.model.width=8", "train.model.width", NO_VALUE, "not in", "d_model"),
        ("train.model.d_model=wide", "train.model.d_model", NO_VALUE, "'wide'", ""),
        ("train.seed", "override", "train.seed", "key=value", "train.seed=1"),
        (
            f"{TASKS}=[{{name: a, family: group_composition, params: {{group: Z9}}}}]",
            f"{TASKS}[0].params.group",
            "Z9",
            "C2 to C120",
            "",
        ),
        (
            f"{TASKS}=[{{name: a, family: group_composition, num_symbols: 5, params: {{group: C6}}}}]",  # noqa: E501
            f"{TASKS}[0].num_symbols",
            5,
            "at least 6",
            "",
        ),
        # The plan.
        (f"{TASKS}.0.schedule.rate=9", f"{TASKS}[0].schedule", 9, "at most 8", ""),
        (f"{TASKS}.0.schedule.rate=-1", f"{TASKS}[0].schedule.rate", -1, "negative", "0"),
        (f"{TASKS}={TWO_BIG_TASKS}", TASKS, NO_VALUE, ("8 rows", "ask for 9 at step 0"), "is 5"),
        (f"{TASKS}.0.num_symbols=300", f"{TASKS}[0]", NO_VALUE, "256", "num_symbols"),
        (f"{TASKS}.0.family=compare", f"{TASKS}[0].family", "compare", "one of", "'comparison'"),
        (f"{TASKS}.1.name=cmp", f"{TASKS}[1].name", "cmp", "unique", ""),
        (f"{TASKS}.-1.nam=a", f"{TASKS}[1].nam", NO_VALUE, ("not in", "'name'"), ""),
        (f"{TASKS}.-1.schedule.phase=a", f"{TASKS}[1].schedule.phase", NO_VALUE, "'a'", ""),
        (
            f"{TASKS}.0.schedule={{rate:2}}",
            f"{TASKS}[0].schedule.rate:2",
            NO_VALUE,
            "not in",
            "blank after the colon: rate: 2",
        ),
        (f"{TASKS}.-3.name=a", f"{TASKS}.-3", NO_VALUE, "0 to 1", ""),
        (f"{TASKS}.x.name=a", f"{TASKS}.x", NO_VALUE, "0 to 1", ""),
        (
            f"{TASKS}=[{{name: a, symbols: [5, 6, 7]}}, {{name: b, symbols: [7, 8, 9]}}]",
            f"{TASKS}[1]",
            [7],
            "task 'a'",
            "share_symbols_with: a",
        ),
        ("injection.offset=13", "injection.offset", 13, "[0, 12]", ""),
        # Callbacks.
        ("callbacks.task_evil={}", "callbacks", "task_evil", "one of", "'task_eval'"),
        (
            "callbacks.task_eval.evry=3",
            "callbacks.task_eval",
            {"every": 1, "evry": 3},
            ("'evry'", "'every'"),
            "every",
        ),
        ("callbacks.task_eval.every=0", "callbacks.task_eval.every", 0, "at least 1", ""),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(
    override: str,
    key: str,
    value: Any,
    rule: Words,
    remedy: str,
    write_experiment: Write,
    tmp_path: Path,
) -> None:
    experiment = write_experiment()
    before = {p.name for p in tmp_path.iterdir()}
    with refuses(key=key, value=value, rule=rule, remedy=remedy):
        train(load_experiment(experiment, [override]))
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_list_where_keys_belong_is_refused(write_experiment: Write, tmp_path: Path) -> None:
    experiment, override = write_experiment(), "train.evaluators.0.label=a"
    before = {p.name for p in tmp_path.iterdir()}
    with refuses(key=experiment, value=[override], rule="lists where lists belong"):
        train(load_experiment(experiment, [override]))
    assert {p.name for p in tmp_path.iterdir()} == before


def change(*keys: str) -> Iterator[tuple[str, str]]:
    """(override, key that is refused) of "key=value, key=value"."""
    for line in keys:
        yield from ((each, each.partition("=")[0]) for each in line.split(", "))


REFUSED = [
    *change(
        "train.seed=-1, train.seed=4294967296, train.data.seed=-1, train.data.num_workers=-1",
        "train.data.prefetch_factor=0, train.data.timeout=-1, train.wandb.log_interval=0",
        "train.optimizer.learning_rate=nan, train.optimizer.learning_rate=-1",
        "train.optimizer.weight_decay=-0.1, train.optimizer.weight_decay=inf",
        "train.optimizer.eps=-1, train.optimizer.eps=nan, train.optimizer.metrics_log_interval=-1",
        "train.scheduler.t_warmup=-1, train.scheduler.t_warmup=.inf, train.scheduler.t_max=0",
        "train.scheduler.alpha_f=nan, train.scheduler.alpha_f=-1",
        "train.scheduler.warmup_min_lr=-1, train.scheduler.warmup_min_lr=1, "
        "train.scheduler.grad_clip_warmup_steps=-1",
        "train.model.init_std=nan, train.model.init_std=0, train.model.rope_theta=0",
        "train.model.layer_norm_eps=0, train.model.clip_qkv=inf, train.model.clip_qkv=0",
        "train.model.attention_dropout=1, train.model.residual_dropout=-0.1",
        "train.model.n_kv_heads=0, train.model.pad_token_id=-1, train.model.mlp_hidden_size=0",
        "train.max_grad_norm=nan, train.max_grad_norm=0, train.max_grad_norm_ratio=-1",
        "train.auxiliary_loss_multiplier=nan, train.early_stopping_factor=nan",
        "train.time_limit=nan, train.time_limit=-1, train.stop_at=-1, train.gen1_gc_interval=0",
        "train.save_num_unsharded_checkpoints_to_keep=-2, train.speed_monitor.window_size=0",
        "train.max_duration=inf, train.max_duration=infT",
        "train.max_duration=nan, train.max_duration=nanT, train.max_duration=1e30T",
        "train.max_duration='1e30', train.max_duration=2ep, train.max_duration=0",
        "train.max_duration=-5, train.max_duration=-5T",
        "train.global_train_batch_size=0, train.device_train_microbatch_size=0",
        "train.save_interval_unsharded=0, train.save_interval_unsharded=null",
        "train.console_log_interval=0, train.canceled_check_interval=0, train.model.n_layers=0",
        "train.model.n_layers=1000000",
        # Rules of several settings.
        "train.model.n_heads=3, train.model.d_model=6, train.model.n_kv_heads=3",
        "train.model.embedding_size=128, train.precision=fp8, train.precision=amp_fp16",
        "train.run_name=null, train.run_name=no, train.run_name=1e3, rung=no, rung=1e3",
        "train.data.drop_last=false, train.data.timeout=5, train.data.generate_doc_lengths=true",
        "train.data.memmap_dtype=int32, train.ddp=null, train.save_interval=5",
        "train.epoch=1",
    ),
    ("train.optimizer.betas=[0.9,1]", "train.optimizer.betas[1]"),
    ("train.optimizer.betas=[nan,0.9]", "train.optimizer.betas[0]"),
    (
        "train.evaluators=[{label: a, data: {num_workers: -1}}]",
        "train.evaluators[0].data.num_workers",
    ),
]


@pytest.mark.parametrize(("override", "key"), REFUSED, ids=[override for override, _ in REFUSED])
def test_a_value_that_cannot_be_trained_is_refused_by_its_key(
    override: str, key: str, write_experiment: Write, tmp_path: Path
) -> None:
    experiment = write_experiment()
    with pytest.raises(ConfigError) as error:
        load_experiment(experiment, [override])
    assert error.value.key == key
    assert error.value.rule
    assert not (tmp_path / "run").exists()


def test_every_range_is_of_a_setting_that_the_engine_has() -> None:
    """A misspelt line of the table would check nothing."""
    train = TrainConfig(
        evaluators=[], wandb=WandbConfig(), fsdp=FSDPConfig(), speed_monitor=SpeedMonitorConfig()
    )
    train.data.instance_filter = InstanceFilterConfig()
    there = {
        ".".join(re.sub(r"\[.*", "", key).split(".")[-2:]) for key, _ in numbers(train, "train")
    }
    assert set(NUMBERS) <= there


def test_an_optimizer_or_scheduler_that_cannot_be_built_is_found_by_a_dry_run(
    write_experiment: Write,
) -> None:
    experiment = load_experiment(write_experiment(), ["train.optimizer.learning_rate=0"])
    with refuses(key="train: train.model, optimizer or scheduler", rule="built by the engine"):
        train(experiment, dry_run=True)


@pytest.mark.parametrize(
    ("tokens", "key", "rule"),
    [
        (np.full(37 * 16, 255, dtype=np.uint32), "train.data.memmap_dtype", "like uint32"),
        (np.full(37 * 16, 300, dtype=np.uint16), "train.data.paths", "vocab_size 256, not 300"),
        (
            np.full(15, 3, dtype=np.uint16),
            "train.data.paths",
            ("15 tokens", "max_sequence_length=16"),
        ),
        (np.full(7 * 16, 3, dtype=np.uint16), "the corpus", ("7 rows", "one batch of 8")),
        (
            np.full(37 * 16 * 2 + 1, 3, dtype=np.uint8),
            "train.data.memmap_dtype",
            "a size that divides",
        ),
    ],
)
def test_a_bad_memmap_is_refused(
    tokens: np.ndarray, key: str, rule: Words, write_experiment: Write, tmp_path: Path
) -> None:
    experiment = write_experiment()
    path = tmp_path / "tokens.npy"
    tokens.tofile(path)
    value = {"train.data.memmap_dtype": "uint16", "train.data.paths": path}.get(key, NO_VALUE)
    with refuses(key=key, value=value, rule=rule):
        train(load_experiment(experiment))
    assert not (tmp_path / "run").exists()


def test_bf16_on_a_cpu_is_refused_rather_than_silently_fp32(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with refuses(key="train.precision", value="amp_bf16", remedy="train.precision=fp32"):
        train(load_experiment(write_experiment(), ["train.precision=amp_bf16"]))


def test_a_task_too_rare_to_come_up_is_warned_of(
    write_experiment: Write, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = load_experiment(write_experiment(), ["injection.tasks.0.schedule.rate=1/50"])
    train(experiment, dry_run=True)
    assert "task cmp has no instance in 12 steps: its rate is one in 50 steps" in caplog.text


def test_a_missing_experiment_is_said() -> None:
    with pytest.raises(FileNotFoundError, match="no experiment file"):
        load_experiment("nowhere.yaml")


@pytest.mark.parametrize(("duration", "steps"), [(7, 7), ("7", 7), ('"1e3"', 1000), ("1000T", 8)])
def test_durations_in_steps_and_tokens(
    duration: object, steps: int, write_experiment: Write
) -> None:
    experiment = load_experiment(write_experiment(), [f"train.max_duration={duration}"])
    assert num_steps(experiment.train) == steps


def test_an_override_reaches_a_callback_whose_name_has_dots(write_experiment: Write) -> None:
    name = "mypkg.callbacks:HeadNorms"
    for load in (load_experiment, GridLoader().load):
        found = load(write_experiment(), [f"callbacks[{name}].every=3"])
        assert found.callbacks[name] == {"every": 3}


def test_null_switches_a_callback_off() -> None:
    assert list(build_callbacks({})) == ["progress"]
    assert list(build_callbacks({"progress": None, "task_eval": {"every": 5}})) == ["task_eval"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small Dolma-format corpus under the real OLMo tokenizer."""
    lines = [json.dumps({"id": str(i), "text": f"some words, {i} of them"}) for i in range(60)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    prepare_corpus([tmp_path / "docs.jsonl"], tmp_path / "corpus", name="c", tokenizer="dolma-v1_5")
    return tmp_path / "corpus"


def test_a_corpus_sets_paths_type_and_special_tokens(write_experiment: Write, corpus: Path) -> None:
    def edit(config: dict) -> None:
        config["corpus"] = str(corpus)
        del config["train"]["data"]["paths"]
        model = config["train"]["model"]
        del model["eos_token_id"], model["pad_token_id"]
        model.update(vocab_size=50280, embedding_size=50304)

    train_config = load_experiment(write_experiment(edit)).train
    assert train_config.data.paths == [str(corpus / "tokens-00000.npy")]
    assert train_config.data.memmap_dtype == "uint16"
    assert train_config.model.eos_token_id == 50279
    for key, value, remedy in (("eos_token_id", 0, "remove"), ("vocab_size", 2048, "to 50280")):
        with refuses(key=f"train.model.{key}", value=value, rule="50279", remedy=remedy):
            load_experiment(write_experiment(edit), [f"train.model.{key}={value}"])


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("rung: a\nrung: b\n")
    with refuses(key=path, rule="found duplicate key rung, line 2"):
        load_experiment(path)


@pytest.mark.parametrize("way", ["file", "override"])
def test_an_experiment_copies_no_secret_of_the_environment(
    way: str, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = "${oc.env:HF_TOKEN,none}"
    path = write_experiment(lambda c: c.update(rung=text) if way == "file" else None)
    key = f"{path if way == 'file' else 'override rung'}: ${{oc.env:HF_TOKEN}}"
    with refuses(key=key, rule="HF_TOKEN into the run's files") as error:
        load_experiment(path, [] if way == "file" else [f"rung={text}"])
    assert "hf_secret" not in str(error.value)
    monkeypatch.setenv("USER", "ada")
    assert load_experiment(write_experiment(), ["rung=${oc.env:USER}"]).rung == "ada"

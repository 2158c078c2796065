"""`olmo-ext init`: an experiment and a sweep to start from, commented, which hold as they stand.

    olmo-ext init mine --size w32 --corpus runs/corpus
    olmo-ext init mine --size 4M --corpus dolma --family modular_addition

The engine's part is copied from the shipped config of that size, comments and all.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from data_injection.errors import ConfigError
from data_injection.files import replace_file
from launch.terminal import console, say
from olmo_ext.shipped import shipped

FAMILIES = ("comparison", "modular_addition")
LADDER = ("4M", "20M", "300M", "1B", "4B")
MICRO_RATES = {"r16": "16", "r4": "4", "r1": "1"}
LADDER_RATES = {"r64": "1/65536", "r4": "1/1048576", "r1": "1/4194304"}
"""As in the ladder's sweeps, the label says how many a step of the study's 4,194,304 tokens has."""

EXPERIMENT = """\
# One run. `train:` is ai2-olmo's TrainConfig, key for key; what stands beside it is ours
# (docs/reading.md). Before you pay for it:
#   olmo-ext plan {file}
#   olmo-ext train {file}
rung: {size}   # name of the model size in records and figures
corpus: {corpus}   # folder of `olmo-ext prepare`: sets paths, dtype, EOS
{train}injection:
  seed: 0                      # symbols, split and rows; apart from the model's train.seed
  offset: 0                    # the first tokens of a row, as in the study
  tasks:                       # one task a run, as the study; more share the batch
    - name: rare
      family: {family}   # or group_composition (with params), or your own, mypkg.tasks:MyTask
      num_symbols: {num_symbols}   # drawn at random from the vocabulary
      train_fraction: 0.5      # the rest is the test split, never trained on
      schedule: {{kind: even, rate: "{rate}"{unit}}}   # exact: {told}
callbacks:
  task_eval: {{every: {every}}}          # score and losses, both splits
  # interference: {{every: {every}}}     # what the rest of the batch does to the task, with nulls
  # features: {{every: {every}}}         # what a probe reads off the task's symbols
  # retention: {{}}                # for bursts: what each left, and how long
"""

SWEEP = """\
# Every combination of the axes is a run; finished ones are skipped when it is started again.
#   olmo-ext sweep {file} --out runs
#   olmo-ext report runs/{name}
name: {name}
experiments: [experiment.yaml]
axes:
  rate:   # from often to rare
{rates}
  seed:   # weights, data order, symbols and split: an interval needs three
    s1: {{train.seed: 1, injection.seed: 1}}
    s2: {{train.seed: 2, injection.seed: 2}}
    s3: {{train.seed: 3, injection.seed: 3}}
"""


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the two files; made if missing.")],
    size: Annotated[str, typer.Option(help="4M, 20M, 300M, 1B, 4B, or wN: d_model N.")] = "w32",
    corpus: Annotated[Path, typer.Option(help="Folder of `olmo-ext prepare`.")] = Path(
        "runs/corpus"
    ),
    family: Annotated[str, typer.Option(help="comparison or modular_addition.")] = "comparison",
) -> None:
    """Write a commented experiment.yaml and sweep.yaml to start from."""
    experiment, sweep = folder / "experiment.yaml", folder / "sweep.yaml"
    for path in (experiment, sweep):
        if path.exists():
            rule = f"has a {path.name} already"
            remedy = "name another folder, or move the file away"
            raise ConfigError(key="FOLDER", value=str(folder), rule=rule, remedy=remedy)
    if family not in FAMILIES:
        rule = f"must be one of {', '.join(FAMILIES)}"
        remedy = "every other is a line in the file that this writes"
        raise ConfigError(key="--family", value=family, rule=rule, remedy=remedy)
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "mine"
    micro = size not in LADDER
    rates = MICRO_RATES if micro else LADDER_RATES
    texts = {
        experiment: EXPERIMENT.format(
            file=shlex.quote(str(experiment)),
            size=size,
            corpus=json.dumps(str(corpus)),
            family=family,
            train=_train(size, corpus, f"{name}-{size}"),
            num_symbols=40 if micro else 100,
            rate=next(iter(rates.values())),
            unit="" if micro else ", unit: per_token",
            told="instances a step" if micro else "instances a token, a fraction",
            every=200 if micro else 500,
        ),
        sweep: SWEEP.format(
            file=shlex.quote(str(sweep)),
            name=name,
            rates="\n".join(
                f'    {label}: {{injection.tasks.0.schedule.rate: "{rate}"}}'
                for label, rate in rates.items()
            ),
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        replace_file(path, text)
        say(console, str(path))
    if not (corpus / "manifest.json").exists():
        prepare = "embedded" if micro else "FILES..."
        say(console, f"next: olmo-ext prepare {prepare} --out {shlex.quote(str(corpus))}")
    say(console, f"next: olmo-ext plan {shlex.quote(str(experiment))}")


def _train(size: str, corpus: Path, run_name: str) -> str:
    """The `train:` block of the shipped config of that size, with the names of this run."""
    ladder = shipped("configs/olmo_4M_to_4B/paper")
    source = ladder / f"{size}.yaml" if size in LADDER else shipped("configs/quickstart.yaml")
    block = re.search(r"^train:\n(?:[ #].*\n)+", source.read_text(), re.MULTILINE)
    assert block is not None
    text = block.group()
    changes: dict[str, object] = {"run_name": run_name, "save_folder": f"runs/{run_name}"}
    if size not in LADDER:
        width = re.fullmatch(r"w(\d{1,4})", size)
        if width is None or int(width[1]) < 4 or int(width[1]) % 4:
            rule = f"must be one of {', '.join(LADDER)}, or wN with N a multiple of 4"
            raise ConfigError(key="--size", value=size, rule=rule)
        changes["d_model"] = int(width[1])
    if (corpus / "manifest.json").exists():
        from data_injection.corpus.manifest import load_manifest

        vocab_size = load_manifest(corpus).vocab_size
        # A multiple of 128, as the engine advises.
        changes |= {"vocab_size": vocab_size, "embedding_size": -(-vocab_size // 128) * 128}
    for key, value in changes.items():
        text, count = re.subn(rf"(?m)^( +{key}: )[^\s#]+", rf"\g<1>{value}", text)
        assert count == 1, key
    return text

"""All 10,000 instances of a task on the 4M rung: ours beside lm-evaluation-harness.

    python benchmarks/evaluate.py --out evaluate.md          # about 5 minutes; needs lm-eval

The rung's own model with random weights (timing does not depend on them), one comparison task of
100 symbols. Ours: `fast_answer` and every row of `eval.scores.accuracy` and
`eval.scores.breakdown`. The harness: its `simple_evaluate` on the folder that `olmo-ext export`
makes of the same checkpoint, with the ids tokenizer and multiple-choice task of
`eval.export.harness` over all instances, so that both answer the same question; and, beside it,
only its model's `loglikelihood` on ready requests, with all labels and with the right one alone
(which says nothing of label_accuracy and score).

Both warm, in turns, medians, the same threads (torch's choice; OMP_NUM_THREADS sets it). The
harness at the fastest of its batch sizes. That both measure the same is checked. Memory is the peak
resident set of a fresh process that loads the checkpoint and measures it as `olmo-ext eval` does.
Exit status 1 if the promise (10 times faster than simple_evaluate, under 2 GB) is not kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # read when it is imported

import numpy as np
import torch
import yaml

from data_injection.tasks.comparison import Comparison
from eval.checkpoints.checkpoint import load_model
from eval.checkpoints.sources import Source
from eval.export.harness import words
from eval.export.huggingface import export_hf
from eval.scores.accuracy import answer, score_answers
from eval.scores.breakdown import SPLITS, breakdown
from eval.scores.evaluate import measure
from eval.scores.fast_answers import cut, fast_answer

RUNG = Path(__file__).parents[1] / "configs/olmo_4M_to_4B/ladder/4M.yaml"

PROMISED_RATIO = 10.0
PROMISED_BYTES = 2e9


def write_checkpoint(folder: Path) -> Path:
    """The rung's model, initialised from a seed, as a stock unsharded checkpoint."""
    from olmo.config import ModelConfig
    from olmo.model import OLMo

    model = yaml.safe_load(RUNG.read_text())["train"]["model"] | {"flash_attention": False}
    path = folder / "step0-unsharded"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    torch.manual_seed(0)
    torch.save(OLMo(ModelConfig(**model, init_device="cpu")).state_dict(), path / "model.pt")
    return path


def the_task() -> Comparison:
    ids = np.random.default_rng(0).choice(np.arange(300, 50_000), 103, replace=False)
    return Comparison("cmp", symbols=ids[:100], labels=ids[100:], seed=0)


def write_task(folder: Path, task: Comparison) -> None:
    """A harness's multiple choice over all instances, as `eval.export.harness` has test splits."""
    labels = task.label_tokens
    rows = [
        {"prompt": words(row[:-1]), "answer": int(np.searchsorted(labels, row[-1]))}
        for row in task.tokens
    ]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "cmp_all",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "all.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": words(labels).split(" "),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "cmp_all.yaml").write_text(yaml.safe_dump(config))


def score_ours(model: Any, task: Comparison) -> list[dict[str, Any]]:
    answers = fast_answer(cut(model), task, np.arange(len(task.tokens)))
    scores = [
        row
        for split in SPLITS
        for row in score_answers(answers[task.split(split)], task, task.split(split))
    ]
    return scores + breakdown(answers, task)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory(path: Path) -> int:
    """Bytes of a fresh process's peak resident set that loads and measures the checkpoint."""
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure_alone(path: Path) -> None:
    """What --measure does."""
    import resource

    rows = measure(Source(path, "unsharded", 0, None), [the_task()])
    assert len(rows) > 30
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def compare(folder: Path, *, rounds: int, batch_sizes: list[int]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    checkpoint, task = write_checkpoint(folder), the_task()
    export_hf(checkpoint, folder / "hf", no_tokenizer=True)
    write_task(folder, task)
    model = load_model(checkpoint)
    everything = np.arange(len(task.tokens))

    def harness_of(batch_size: int) -> Any:
        hf, ids = str(folder / "hf"), str(folder / "hf" / "ids_tokenizer")
        return HFLM(hf, tokenizer=ids, batch_size=batch_size, device="cpu", dtype="float32")

    def requests(labels_of: Callable[[int], list[int]]) -> list[Any]:
        return [
            Instance("loglikelihood", {}, (words(row[:-1]), f" <{label}>"), 0)
            for i, row in enumerate(task.tokens)
            for label in labels_of(i)
        ]

    choices = requests(lambda i: task.label_tokens.tolist())
    right = requests(lambda i: [int(task.tokens[i, -1])])
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def whole(lm: Any) -> dict[str, Any]:
        return lm_eval.simple_evaluate(
            lm, tasks=["cmp_all"], task_manager=manager, log_samples=False, bootstrap_iters=0
        )

    lms = {size: harness_of(size) for size in batch_sizes}
    warm = {s: seconds(lambda lm=lm: lm.loglikelihood(choices, True)) for s, lm in lms.items()}
    best = min(warm, key=warm.__getitem__)
    lm = lms[best]
    # The same model, the same answers: before any timing counts.
    theirs = whole(lm)["results"]["cmp_all"]["acc,none"]
    reference = answer(lambda x: model(x, last_logits_only=True).logits[:, -1], task, everything)
    mine = fast_answer(cut(model), task, everything)
    assert abs(theirs - mine.label_correct.mean()) < 5e-4, (theirs, mine.label_correct.mean())
    found = np.array([value for value, _ in lm.loglikelihood(right, True)])
    difference = {
        "harness": float(np.abs(found + mine.loss).max()),
        "eval.scores.accuracy.answer": float(np.abs(reference.loss - mine.loss).max()),
    }
    parts: dict[str, Callable[[], Any]] = {
        "ours": lambda: score_ours(model, task),
        "harness, simple_evaluate": lambda: whole(lm),
        "harness, loglikelihood of all labels": lambda: lm.loglikelihood(choices, True),
        "harness, loglikelihood of the right label": lambda: lm.loglikelihood(right, True),
    }
    parts["ours"]()
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            times[name].append(seconds(part))
    return {
        "seconds": {name: median(values) for name, values in times.items()},
        "ratios": {
            name: median(t / o for t, o in zip(values, times["ours"], strict=True))
            for name, values in times.items()
        },
        "range": {
            name: [f(t / o for t, o in zip(values, times["ours"], strict=True)) for f in (min, max)]
            for name, values in times.items()
        },
        "largest difference of a label's loss": difference,
        "batch size": best,
        "threads": torch.get_num_threads(),
        "peak bytes": peak_memory(checkpoint),
    }


def table(result: dict[str, Any]) -> str:
    lines = ["| | s, median | ours is faster by | min to max |", "| --- | ---: | ---: | ---: |"]
    for name, value in result["seconds"].items():
        low, high = result["range"][name]
        lines.append(
            f"| {name} | {value:.2f} | {result['ratios'][name]:.1f} | {low:.1f} to {high:.1f} |"
        )
    difference = result["largest difference of a label's loss"]
    lines += [
        "",
        f"{result['threads']} threads; the harness at batch size {result['batch size']}. Peak "
        f"memory of ours: {result['peak bytes'] / 1e9:.2f} GB. Largest difference of a label's "
        f"loss, nats: {difference['harness']:.1e} from the harness, "
        f"{difference['eval.scores.accuracy.answer']:.1e} from `eval.scores.accuracy.answer`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure_alone(args.measure)
        return 0
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        result = compare(Path(name), rounds=args.rounds, batch_sizes=args.batch_sizes)
    print(table(result))
    if args.out:
        args.out.write_text(table(result))
    ratio = result["ratios"]["harness, simple_evaluate"]
    kept = ratio >= PROMISED_RATIO and result["peak bytes"] < PROMISED_BYTES
    print(
        f"promise ({PROMISED_RATIO:g} times faster, under 2 GB): {'kept' if kept else 'NOT KEPT'}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

"""A plan's tasks for EleutherAI's lm-evaluation-harness, with a tokenizer that keeps token ids.

    cd exported && lm_eval --model hf --model_args pretrained=.,tokenizer=ids_tokenizer \\
        --include_path harness --tasks olmo_ext

Two tasks for each of ours, over its test split: NAME_greedy, whose acc is our `accuracy`, and
NAME_choice, whose acc is our `label_accuracy` (`eval.scores.accuracy`). Random tokens do not
survive decode and encode, so prompts are written as ids, "<512> <77>", and the tokenizer's words
are these: the harness and its stock `hf` model then need no code of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from data_injection.philox import permutation
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import IntArray, Task

FOLDER = "harness"

IDS_TOKENIZER = "ids_tokenizer"

TAG = "olmo_ext"
"""`--tasks olmo_ext` names all of a folder's tasks."""

CHOICE_REQUESTS = 50_000
"""Requests of one multiple-choice task at most. One item has a request for every label: all 5,000
test pairs of 3 labels, but 500 of those of an addition modulo 100."""


def words(ids: IntArray) -> str:
    """Token ids as the text that the ids tokenizer reads."""
    return " ".join(f"<{token}>" for token in ids.tolist())


def choice_items(task: Task) -> IntArray:
    """The test examples of a task's multiple choice, ascending: all, or a fixed random subset."""
    num = CHOICE_REQUESTS // len(task.label_tokens)
    if num >= len(task.test):
        return task.test
    order = permutation(len(task.test), seed=0, purpose=f"harness/{task.name}")
    return np.sort(task.test[order[:num]])


def write_harness(folder: Path, plan: InjectionPlan) -> None:
    """Write the YAML and JSONL files of all tasks of a plan into a new folder."""
    folder.mkdir()
    for task in plan.labelled:
        # A name is any text; in a file's and a harness task's only these characters are safe.
        name = quote(task.name, safe="")
        chosen = choice_items(task)
        whole = part = f"{name}.jsonl"
        _write_items(folder / whole, task, task.test)
        if len(chosen) < len(task.test):
            part = f"{name}_subset.jsonl"
            _write_items(folder / part, task, chosen)
        greedy = {
            "output_type": "loglikelihood",
            "doc_to_target": "{{label}}",
            "metadata": _metadata(plan, task, task.test, ours="accuracy"),
        }
        choice = {
            "output_type": "multiple_choice",
            "doc_to_choice": [f"<{token}>" for token in task.label_tokens.tolist()],
            "doc_to_target": "answer",
            "metadata": _metadata(plan, task, chosen, ours="label_accuracy"),
        }
        for kind, items, fields in (("greedy", whole, greedy), ("choice", part, choice)):
            config = _common(f"{name}_{kind}", items=items) | fields
            text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=100)
            (folder / f"{name}_{kind}.yaml").write_text(text)


def write_ids_tokenizer(folder: Path, *, vocab_size: int, eos: int, pad: int) -> None:
    """Write a tokenizer of the words "<0>" .. "<vocab_size - 1>", as AutoTokenizer loads it.

    Any other text is an error, never another id: the vocabulary has no word for the unknown.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({f"<{i}>": i for i in range(vocab_size)}, unk_token="none"))
    # Also without a space between: the harness joins a prompt and its answer without one.
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(r"<\d+>"), "isolated")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": eos, "pad_token": pad}
    names = {key: f"<{token}>" for key, token in special.items() if token < vocab_size}
    write_tokenizer_config(folder, names)


def write_tokenizer_config(folder: Path, names: dict[str, str], **more: Any) -> None:
    """Beside a tokenizer.json: the class that loads it as it is, and its special tokens."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **more}
    config["clean_up_tokenization_spaces"] = False
    # transformers 4 would add token_type_ids, which a LLaMA's generate refuses.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _write_items(path: Path, task: Task, indices: IntArray) -> None:
    answers = np.searchsorted(task.label_tokens, task.tokens[indices, -1])
    rows = zip(indices.tolist(), task.tokens[indices], answers.tolist(), strict=True)
    lines = [
        {"example": i, "prompt": words(row[:-1]), "label": words(row[-1:]), "answer": answer}
        for i, row, answer in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _common(name: str, *, items: str) -> dict[str, Any]:
    return {
        "task": name,
        "tag": TAG,
        "dataset_path": "json",
        # Looked up from where lm_eval is started: the exported folder, wherever it is by then.
        "dataset_kwargs": {"data_files": {"test": f"{FOLDER}/{items}"}},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _metadata(plan: InjectionPlan, task: Task, items: IntArray, *, ours: str) -> dict[str, Any]:
    _, counts = np.unique(task.tokens[items, -1], return_counts=True)
    return {
        "version": 1,
        "plan_hash": plan.hash,
        "family": task.family,
        "items": len(items),
        "of_test_examples": len(task.test),
        "acc_is": ours,
        "majority": float(counts.max() / counts.sum()),
    }

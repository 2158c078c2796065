"""The model card (README.md) of an exported checkpoint, from what is known of it.

text = model_card(find_provenance("runs/w32"), num_params=98_464, dtype="fp32", tokenizer=True)

What is not known is said to be unknown, never guessed.
"""

from __future__ import annotations

import math

from data_injection.plan import InjectionPlan
from data_injection.tasks.base import Task
from eval.export.harness import choice_items, words
from eval.export.provenance import METRICS, Provenance
from eval.text import markdown_table, with_interval

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [olmo, llama, rare-task-injection]
---
"""

COMMAND = """lm_eval --model hf --model_args pretrained=.,tokenizer=ids_tokenizer \\
    --include_path harness --tasks olmo_ext"""

PRECISION = {
    "fp32": "fp32, the checkpoint's own numbers, none rounded",
    "bf16": "rounded to bf16: logits no longer agree with the original's, and scores can differ "
    "from those below",
}


def model_card(provenance: Provenance, *, num_params: int, dtype: str, tokenizer: bool) -> str:
    """The card as Markdown; `tokenizer` says whether there is one of text."""
    parts = [
        HEAD + _title(provenance),
        _origin(provenance, num_params=num_params, dtype=dtype),
        _tasks(provenance),
        _scores(provenance),
        _use(provenance, tokenizer=tokenizer),
        _limits(provenance, dtype=dtype, tokenizer=tokenizer),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(provenance: Provenance) -> str:
    run = provenance.run.get("run", "checkpoint")
    at = f", step {provenance.step:,}" if provenance.step is not None else ""
    return (
        f"# {run}{at}\n\n"
        "A research model on the question why larger language models learn what smaller ones "
        "never do ([arXiv 2605.29548](https://arxiv.org/abs/2605.29548)): trained with OLMo's "
        "pretraining code on text into which `olmo-ext` spliced rare, synthetic tasks at exact "
        "frequencies. "
        "Converted to `LlamaForCausalLM`, which computes the same; no remote code."
    )


def _origin(provenance: Provenance, *, num_params: int, dtype: str) -> str:
    known = provenance.summary()
    fields = provenance.run.get("record_fields", {})
    without = f" ({fields['params']:,} without the input embedding)" if fields else ""
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    corpus = " ".join(f"`{part}`" for part in (known["corpus"], known["corpus_hash"]) if part)
    steps, tokens = provenance.step, known["training_tokens"]
    rows: list[tuple[str, str]] = [
        ("run", _code(known["run"])),
        ("rung", _code(known["rung"])),
        ("seed", _code(known["seed"])),
        ("parameters", f"{num_params:,}{without}"),
        ("steps", f"{steps:,}" if steps is not None else ""),
        ("training tokens", f"{tokens:,}" if tokens is not None else ""),
        ("plan hash", _code(known["plan_hash"])),
        ("corpus", corpus),
        ("stream digest", _code(known["stream_digest"])),
        ("commit of olmo-ext", ", ".join(_code(commit) for commit in known["commits"])),
        ("versions", versions),
        ("weights", PRECISION[dtype]),
    ]
    lines = markdown_table(("", ""), ((name, value or "unknown") for name, value in rows))
    return (
        f"## Where it comes from\n\n{lines}\n\n"
        "The plan hash identifies tasks, splits, schedules and places of all injections; the "
        "stream digest every token it was trained on. `olmo_ext.json` holds both with all settings."
    )


def _tasks(provenance: Provenance) -> str:
    plan, step = provenance.plan, provenance.step
    if plan is None or step is None:
        return "## Tasks\n\nUnknown: exported away from its run's folder."
    if not plan.tasks:
        return "## Tasks\n\nNone: trained on text alone."
    head = (
        *("task", "family", "schedule", "per step", "per row", "per token"),
        *("task tokens / token", "exposures / example", "train", "test"),
    )
    rows = []
    for index, task in enumerate(plan.tasks):
        rates = plan.rates(index)
        units = ("per_step", "per_sequence", "per_token", "task_tokens_per_token")
        rows.append(
            (
                *(_code(task.name), task.family, plan.schedules[index].label),
                *(f"{rates[unit]:.4g}" for unit in units),
                f"{plan.exposures_per_example(index, step):.4g}",
                *(f"{len(task.train):,}", f"{len(task.test):,}"),
            )
        )
    ids = "\n".join(_symbols(task) for task in plan.tasks)
    return (
        "## Tasks\n\nFrequencies are means over the schedule, exposures how often each train "
        f"example had been seen by this step.\n\n{markdown_table(head, rows)}\n\n{ids}\n\n"
        "`tasks.json` holds every example and the split."
    )


def _symbols(task: Task) -> str:
    labels = f"; labels {_ids(task.labels.tolist())}" if len(task.labels) else ""
    return f"- `{task.name}`: symbols {_ids(task.symbols.tolist())}{labels}"


def _scores(provenance: Provenance) -> str:
    if not provenance.scores:
        return "## Scores\n\nNone recorded at this step; `olmo-ext eval` on the run writes them."
    by_task: dict[str, dict[str, dict]] = {}
    for row in provenance.scores:
        by_task.setdefault(row["task"], {})[row["metric"]] = row
    rows = [
        (
            _code(task),
            *(_interval(found.get(metric)) for metric in METRICS),
            f"{found['score']['majority']:.3f}" if "score" in found else "",
            f"{int(next(iter(found.values()))['n']):,}",
        )
        for task, found in by_task.items()
    ]
    return (
        "## Scores on the test split\n\n`accuracy` over the whole vocabulary, `label_accuracy` "
        "over the task's labels, `score` = (label_accuracy - majority) / (1 - majority); with 95% "
        "intervals over items.\n\n" + markdown_table(("task", *METRICS, "majority", "n"), rows)
    )


def _interval(row: dict | None) -> str:
    if row is None or math.isnan(row["value"]):
        return ""
    return with_interval(row["value"], row["low"], row["high"], digits=3)


def _use(provenance: Provenance, *, tokenizer: bool) -> str:
    plan = provenance.plan
    prompt, answer = "[5, 7]", ""
    if plan is not None and plan.tasks:
        task = plan.tasks[0]
        example = task.tokens[task.test[0]]
        prompt = str(example[:-1].tolist())
        answer = f"  # a test example of {task.name}; right is {int(example[-1])}"
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        f"ids = torch.tensor([{prompt}]){answer}",
        "print(model(ids).logits[0, -1].argmax())",
    ]
    if tokenizer:
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'text = tokenizer("The question is", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**text, max_new_tokens=20)[0]))",
        ]
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```" + _harness(plan)


def _harness(plan: InjectionPlan | None) -> str:
    if plan is None or not plan.tasks:
        return ""
    subsets = [
        f"`{task.name}_choice` has {len(items):,} of the {len(task.test):,} test examples"
        for task in plan.tasks
        if len(items := choice_items(task)) < len(task.test)
    ]
    stated = f" {'; '.join(subsets)} (a fixed random subset)." if subsets else ""
    task = plan.tasks[0]
    prompt = words(task.tokens[task.test[0]][:-1])
    return (
        "\n\nWith [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), "
        f"from inside this folder:\n\n```bash\n{COMMAND}\n```\n\n"
        "`acc` of NAME_greedy is `accuracy`, that of NAME_choice `label_accuracy`."
        f"{stated} `ids_tokenizer` reads token ids as text (`{prompt}`): random tokens do not "
        "survive decode and encode."
    )


def _limits(provenance: Provenance, *, dtype: str, tokenizer: bool) -> str:
    model = provenance.model
    limits = [
        "Not for use: a measuring instrument, without any safety work.",
        "A task's prompt is its symbols alone at the start of a row, as in training; with other "
        "text before them nothing was measured.",
        f"At most {model['max_sequence_length']:,} tokens.",
    ]
    if model["embedding_size"] and model["embedding_size"] > model["vocab_size"]:
        limits.append(
            f"Ids {model['vocab_size']:,} to {model['embedding_size'] - 1:,} are padding of the "
            "embedding: no token, never trained on."
        )
    if not tokenizer:
        limits.append("No tokenizer of text: exported without.")
    if dtype != "fp32":
        limits.append(f"Rounded to {dtype}; export again for the exact weights.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _code(value: object) -> str:
    return f"`{value}`" if value is not None else ""


def _ids(ids: list[int]) -> str:
    return " ".join(map(str, ids))

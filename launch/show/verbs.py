"""The verbs of what runs leave behind: eval, features, reference, report, audit, export.

olmo-ext eval runs/
olmo-ext report runs/
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_injection.errors import ConfigError
from launch.json_file import write_json, write_rows
from launch.terminal import (
    JsonFile,
    at_work,
    console,
    errors,
    interruptible,
    progress_bar,
    refuse_idle,
    say,
    tables,
    typed_command,
)

if TYPE_CHECKING:
    from eval.scores.evaluate import TaskSet


def _check_device(device: str) -> str:
    if device not in ("cpu", "cuda"):
        raise ConfigError(key="--device", value=device, rule="must be cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            rule, remedy = "is for a GPU, and torch sees none here", "leave it out or see doctor"
            raise ConfigError(key="--device", value=device, rule=rule, remedy=remedy)
    return device


Device = Annotated[str, typer.Option(callback=_check_device, help="cpu or cuda.")]


def evaluate(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs, folders of runs, checkpoints, HF folders.")
    ],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="train or test; default both.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="Only this step; repeatable.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Run or experiment.yaml whose tasks checkpoints outside runs are asked."),
    ] = None,
    device: Device = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Checkpoints side by side.")] = 1,
    export: Annotated[Path | None, typer.Option(help="Table of all rows: .csv, .parquet.")] = None,
    out: Annotated[Path | None, typer.Option(hidden=True, help="--export, before 0.1.")] = None,
    json: JsonFile = None,
) -> None:
    """Score every checkpoint on every task and split; what is in the records is skipped."""
    with at_work("starting"):
        from eval.scores.evaluate import Choice, Done, chosen_sources, reads_sequences, results
        from eval.scores.evaluate import evaluate as run
        from eval.scores.table import print_scores
        from eval.text import TABLE_SUFFIXES, check_target, write_table

        option, target = ("--out", out) if export is None else ("--export", export)
        check_target(target, option, suffixes=TABLE_SUFFIXES)
        choice = Choice(task, split or ("train", "test"), step)
        found = chosen_sources(sources, choice)
        asked = _tasks_of(plan) if plan is not None else None
        without = [task.name for task in asked.tasks if not task.has_label] if asked else []
        if without and not all(map(reads_sequences, found)):
            told = "checkpoints of Hugging Face and OLMo-core are not asked sequences: "
            say(errors, told + ", ".join(without))
    done: list[Done] = []
    with progress_bar(errors) as bar:
        bar("checkpoints", 0, len(found))
        for one in run(sources, choice=choice, asked=asked, device=device, jobs=jobs):
            done.append(one)
            said = one.problem or (f"{len(one.rows)} rows" if one.rows else "already there")
            say(errors, f"{one.source.path}: {said}")
            bar("checkpoints", len(done), len(found))
    table = results(found, done, choice)
    print_scores(table, tables(json))
    write_rows(json, table)
    if target is not None:
        write_table(target, table)
        say(tables(json), f"{target}: {len(table):,} rows")


def features(
    context: typer.Context,
    sources: Annotated[list[Path], typer.Argument(help="Runs, checkpoints, or folders of runs.")],
    das: Annotated[
        bool, typer.Option("--das", help="Also alignment search, its controls, causal effects.")
    ] = False,
    task: Annotated[list[str] | None, typer.Option(help="These tasks only; repeatable.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="These steps only; repeatable.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of subspaces; default: of what the probes found.")
    ] = None,
    search_steps: Annotated[int, typer.Option(min=1, help="Of a subspace's search.")] = 200,
    device: Device = "cpu",
    export: Annotated[Path | None, typer.Option(help="Table of all rows: .csv, .parquet.")] = None,
    json: JsonFile = None,
) -> None:
    """What the tasks' symbols hide, and which layer uses it; what is in the records is skipped."""
    if not das:
        refuse_idle(context, ("rank", "search_steps"), "without --das")
    with at_work("starting"):
        from launch.show.features import measure_features

    measure_features(
        sources, das=das, tasks=task or (), steps=step or (), rank=rank, search_steps=search_steps,
        device=device, export=export, json=json, console=tables(json), errors=errors,
    )  # fmt: skip


def reference(
    sources: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    corpus: Annotated[Path | None, typer.Option(help="Where the token files are now.")] = None,
    sample_tokens: Annotated[
        int | None, typer.Option(min=1, help="Scan an evenly spread sample of so many tokens.")
    ] = None,
    most: Annotated[int, typer.Option(min=2, help="Distinct statements measured a task.")] = 500,
    device: Device = "cpu",
    json: JsonFile = None,
) -> None:
    """Natural comparisons and additions of the corpus: their frequency, and loss by checkpoint."""
    with at_work("starting"):
        from launch.show.reference import reference as run

    scan = {"corpus": corpus, "sample_tokens": sample_tokens}
    run(
        sources, scan=scan, most=most, device=device, json=json, console=tables(json), errors=errors
    )


def report(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the source.")] = None,
    watch: Annotated[
        float | None,
        typer.Option(min=1, help="Write it again every so many seconds, while a run lives."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Write the figures the records hold, CSV tables and one self-contained report.html."""
    with at_work("drawing the report"):
        from eval.report.tables import print_cells
        from eval.report.write import report_cells
        from eval.run import left_out
        from launch.show.watch import watch_report

    if watch is not None:
        with interruptible("the last report stays"):
            watch_report(source, out, every=watch, command=typed_command(), errors=errors)
    with at_work("drawing the report"):
        path, found = report_cells(source, out, command=typed_command())
    if len(found):
        print_cells(found, tables(json))
    write_rows(json, found)
    for line in left_out(source):
        say(errors, f"left out: {line}")
    say(tables(json), str(path))


def audit(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint; default: the latest.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All files of all checkpoints, all tokens of the stream.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(help="Steps read again without --full; default: those of 268M tokens."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Where the token files are now, if they were moved.")
    ] = None,
    explain: Annotated[
        int | None, typer.Option(help="Show what a step (from 0) injected, audit nothing.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows shown by --explain.")] = 10,
    export: Annotated[
        str | None, typer.Option(help="Write the ledger: parquet, csv, or a file of that ending.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Hold plan, checkpoints, ledger and text of a run against each other; status 1 if one differs.

    Writes nothing into the run's folder but what --export asks for.
    """
    from eval.audit.audit import audit_run
    from eval.audit.explain import explain_step
    from eval.audit.ledger import export_ledger, export_path
    from eval.text import check_target
    from launch.show.audit import show_audit, show_explanation

    idle = ("rows",) if explain is None else ("full", "sample", "export", "json")
    refuse_idle(context, idle, f"with{'out' * (explain is None)} --explain")
    if explain is not None:
        explained = explain_step(run, explain, checkpoint=step, corpus=corpus, most=rows)
        show_explanation(explained, console)
        return
    target = export_path(run, export) if export is not None else None
    check_target(target, "--export")
    with interruptible("nothing was written"), progress_bar(errors) as progress:
        found = audit_run(
            run, step=step, corpus=corpus, full=full, sample=sample, progress=progress
        )
    show_audit(found, tables(json))
    if json is not None:
        write_json(json, found.as_json())
    if target is not None:
        export_ledger(run, target, checkpoint=step, command=typed_command())
        say(tables(json), str(target))
    if found.status:
        raise typer.Exit(found.status)


def export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A checkpoint or a run; for olmo a HF folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    to: Annotated[str, typer.Option(help="hf (stock LlamaForCausalLM) or olmo, back.")] = "hf",
    step: Annotated[int | None, typer.Option(help="Of a run; default: its latest.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json or dolma-v1_5; default: the corpus's.")
    ] = None,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="Token ids alone.")] = False,
    dtype: Annotated[str, typer.Option(help="fp32, exact, or bf16, rounded.")] = "fp32",
    despite_divergence: Annotated[
        bool, typer.Option("--despite-divergence", help="Although its numbers are not finite.")
    ] = False,
) -> None:
    """Write a checkpoint for transformers and lm-evaluation-harness, or read one back."""
    with at_work("starting"):
        from eval.export.huggingface import export_hf, import_hf

    if to == "olmo":
        of_hf = ("step", "tokenizer", "no_tokenizer", "dtype", "despite_divergence")
        refuse_idle(context, of_hf, "with --to olmo")
        console.print(f"{import_hf(source, out)}: config.yaml and model.pt, as eval reads them")
        return
    if to != "hf":
        raise ConfigError(key="--to", value=to, rule="must be hf or olmo")
    with at_work(f"exporting {source}"):
        done = export_hf(
            source, out, step=step, tokenizer=tokenizer, no_tokenizer=no_tokenizer, dtype=dtype,
            despite_divergence=despite_divergence,
        )  # fmt: skip
    console.print(f"{out}: {done.provenance.path}, {done.num_params:,} parameters in {dtype}")


def _tasks_of(plan: Path) -> TaskSet:
    """The tasks of a run's folder or of an experiment file."""
    from eval.run import EXPERIMENT, PLAN, RUN
    from eval.scores.evaluate import TaskSet, tasks_of_run

    # `plan --json` may have written a plan.json beside any experiment: a run has a run.json too.
    if plan.is_dir() or (plan.name in (EXPERIMENT, PLAN, RUN) and (plan.parent / RUN).is_file()):
        return tasks_of_run(plan if plan.is_dir() else plan.parent)
    from data_injection.corpus.manifest import MANIFEST, load_manifest
    from olmo_ext.build import compile_tasks
    from olmo_ext.config import load_experiment

    experiment = load_experiment(plan, corpus=False)
    manifest = None
    if experiment.corpus is not None:
        # Which ids are special stands in the manifest; it may be told from where the file lies.
        places = [Path(experiment.corpus), plan.parent / experiment.corpus]
        if not (found := [place for place in places if (place / MANIFEST).is_file()]):
            raise FileNotFoundError(
                f"--plan {plan}: its corpus {experiment.corpus} has no {MANIFEST} here or beside "
                "the file, and the tasks draw none of the ids that it reserves; give the folder of "
                "a run with this plan, or go to where the corpus is"
            )
        manifest = load_manifest(found[0])
    return TaskSet(compile_tasks(experiment, manifest=manifest), experiment.train.model.vocab_size)

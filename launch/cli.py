"""olmo-ext: the front door. Each verb is a few lines over a function of another room.

    olmo-ext quickstart
    olmo-ext prepare embedded --out runs/corpus
    olmo-ext plan experiment.yaml && olmo-ext train experiment.yaml
    olmo-ext eval runs/ && olmo-ext report runs/

Bad input ends with status 2 and one message that names key, value and remedy. Heavy imports live in
the verb that needs them, so that --help answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_injection.config import ConfigError
from launch.lab import verb as theory
from launch.scaling import verbs as scaling

if TYPE_CHECKING:
    from eval.scores.evaluate import TaskSet

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""The disk's own reasons: no defect of the program, so that a traceback would only hide them."""

app = typer.Typer(
    help="Rare-task injection for OLMo pretraining: what larger models learn and smaller do not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(theory.app, name="theory")
app.add_typer(scaling.app, name="scaling")
launch_app = typer.Typer(help="Start a run on several ranks.", no_args_is_help=True)
app.add_typer(launch_app, name="launch")
console = Console()
errors = Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", help="Dotted setting, e.g. train.seed=1; repeatable."),
]
ExperimentFile = Annotated[Path, typer.Argument(help="Experiment YAML.")]


@app.command()
def quickstart(
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and report; default runs/quickstart.")
    ] = None,
    widths: Annotated[list[int] | None, typer.Option(help="d_model of each size.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Model seeds.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    smoke: Annotated[bool, typer.Option(help="Two widths, one rate, one minute.")] = False,
    check: Annotated[
        bool, typer.Option(help="Status 1 if the learned cells do not rise with size.")
    ] = False,
) -> None:
    """Train the grid of sizes and frequencies on the embedded corpus and report what is learned."""
    from launch.sweep.quickstart import quickstart as run

    default = Path("runs/quickstart-smoke" if smoke else "runs/quickstart")
    with _training():
        rises = run(
            out or default,
            widths=tuple(widths or ()),
            seeds=tuple(seeds or (6198,)),
            jobs=jobs,
            smoke=smoke,
            console=console,
        )
    if check and not rises:
        raise typer.Exit(1)


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="`embedded`, or Dolma files, globs, folders, hf:PATH[,CONFIG][:SPLIT]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the corpus.")],
    tokenizer: Annotated[
        str, typer.Option(help="dolma-v1_5, dolma2, or a tokenizer.json.")
    ] = "dolma-v1_5",
    name: Annotated[str | None, typer.Option(help="Name in the manifest.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of a record with its text.")] = "text",
    dtype: Annotated[str | None, typer.Option(help="uint16 or uint32; default: smallest.")] = None,
    vocab_size: Annotated[int, typer.Option(help="BPE vocabulary of `embedded`.")] = 2048,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.")] = None,
) -> None:
    """Turn text into the engine's token files with a manifest."""
    from data_injection.corpus.prepare import prepare_corpus, prepare_embedded

    if sources == ["embedded"]:
        manifest = prepare_embedded(out, vocab_size=vocab_size)
    else:
        manifest = prepare_corpus(
            sources,
            out,
            name=name or out.name,
            tokenizer=tokenizer,
            dtype=dtype,
            text_field=text_field,
            max_tokens=max_tokens,
        )
    console.print(
        f"{out}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents, "
        f"{manifest.dtype}, vocabulary {manifest.vocab_size}, sha256 {manifest.hash}"
    )


@app.command()
def plan(
    experiments: Annotated[
        list[Path],
        typer.Argument(help="Experiment YAML; with --cost several, folders of them, sweeps."),
    ],
    override: Overrides = None,
    scan: Annotated[bool, typer.Option(help="Look for the tasks' tokens in the corpus.")] = True,
    scan_tokens: Annotated[
        int | None, typer.Option(min=1, help="Scan an evenly spread sample of so many tokens.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Only what runs cost, in one table; needs no corpus.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(help="World size of the estimate; default 1, with --cost 8.")
    ] = None,
    peak_tflops: Annotated[
        float, typer.Option(help="Peak of one GPU; 989 is an H100 SXM in dense bf16.")
    ] = 989.0,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the model uses.")] = 0.4,
    json: Annotated[Path | None, typer.Option(help="Write all numbers to this file.")] = None,
) -> None:
    """Before you pay for a run: exposures, what the corpus holds already, cost, warnings."""
    device = {"peak_tflops": peak_tflops, "mfu": mfu}
    if cost:
        from launch.plan.cost import plan_cost

        gpus = 8 if gpus is None else gpus
        plan_cost(experiments, override or [], gpus=gpus, **device, json_path=json, console=console)
        return
    if len(experiments) != 1:
        raise ConfigError(f"plan takes one experiment, got {len(experiments)}; --cost takes more")
    from launch.plan.preflight import preflight, show, write_json
    from olmo_ext.config import load_experiment

    config = load_experiment(experiments[0], override, corpus=False)
    gpus = 1 if gpus is None else gpus
    try:
        found = preflight(config, scan=scan, scan_tokens=scan_tokens, gpus=gpus, **device)
    except KeyboardInterrupt:
        errors.print("interrupted; --no-scan or --scan-tokens takes less time")
        raise typer.Exit(130) from None
    show(found, console)
    if json is not None:
        write_json(found, json)


@app.command()
def train(
    experiment: ExperimentFile,
    override: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's latest checkpoint.")
    ] = False,
    new_ledger: Annotated[
        bool, typer.Option("--new-ledger", help="Resume although the ledger is damaged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, train nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="The engine's log too.")] = False,
) -> None:
    """Train one experiment; under torchrun on all its ranks."""
    from olmo_ext.signals import StopSignals, await_agent_end, end_after

    with StopSignals() as signals:  # before what takes seconds to import
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_after(await_agent_end)
        _train(
            experiment,
            override,
            verbose=verbose,
            resume=resume,
            dry_run=dry_run,
            new_ledger=new_ledger,
            signals=signals,
        )


def _train(
    experiment: Path, override: list[str] | None, *, verbose: bool, dry_run: bool, **settings: Any
) -> None:
    import torch.distributed as dist

    from eval.checkpoints.checkpoint import find_checkpoints
    from eval.run import MARKER, read_if_whole, read_run
    from olmo_ext.config import load_experiment
    from olmo_ext.train import train as run

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        folder = run(
            load_experiment(experiment, override, corpus=False), dry_run=dry_run, **settings
        )
    except KeyboardInterrupt:
        errors.print("interrupted; --resume goes on from the last checkpoint")
        raise typer.Exit(130) from None
    # Not after an error: it can wait for ranks that are still inside a collective.
    dist.destroy_process_group()
    if not _is_rank_zero():
        return
    if dry_run:
        console.print(f"{experiment}: all checks passed; nothing was trained or written")
    elif told := read_if_whole(folder / MARKER):
        console.print(
            f"{folder}: stopped by {told['reason']}, saved at step {told['step']} of "
            f"{told['num_steps']}; --resume goes on ({MARKER} is for the batch script)"
        )
    else:
        steps = read_run(folder)["num_steps"]
        console.print(f"{folder}: trained to step {find_checkpoints(folder)[-1].step} of {steps}")


@launch_app.command()
def torchrun(
    experiment: ExperimentFile,
    nproc: Annotated[int, typer.Option(help="Ranks on each node: its GPUs.")],
    nnodes: Annotated[int, typer.Option(help="Nodes; the same command is run on each.")] = 1,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(help="HOST:PORT where the nodes' agents meet.")
    ] = None,
    rdzv_id: Annotated[str | None, typer.Option(help="Name of the meeting.")] = None,
    max_restarts: Annotated[int, typer.Option(help="Starts again after a rank failed.")] = 0,
    shutdown_timeout: Annotated[
        int, typer.Option(help="Seconds from a signal to SIGKILL: a step, a save and a margin.")
    ] = 600,
    override: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
) -> None:
    """Print the exact torchrun command of a run and run it; goes on from the last checkpoint."""
    from launch.slurm.torchrun import launch_torchrun

    launch_torchrun(
        experiment, nproc=nproc, nnodes=nnodes, rdzv_endpoint=rdzv_endpoint, rdzv_id=rdzv_id,
        max_restarts=max_restarts, shutdown_timeout=shutdown_timeout, overrides=override or [],
        dry_run=dry_run, console=console,
    )  # fmt: skip


@app.command()
def sweep(
    sweeps: Annotated[list[Path], typer.Argument(help="Sweep YAMLs.")],
    out: Annotated[Path, typer.Option(help="Runs go to OUT/<sweep>/<labels>.")] = Path("runs"),
    override: Overrides = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; default: one a GPU, or a core.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="More starts for a run that fails.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Show the runs, train nothing.")] = False,
    screen: Annotated[
        str | None,
        typer.Option(
            help="Budget (2e11tokens, 3e18flops or 120gpuh): train the mixtures, and of the "
            "single-task runs those nearest the frontier that the mixtures show."
        ),
    ] = None,
    peak_tflops: Annotated[float, typer.Option(help="Peak of one GPU, for GPU hours.")] = 989.0,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the model uses.")] = 0.4,
) -> None:
    """Train every run of one or more sweeps on this machine; what is finished is skipped."""
    from launch.grid import load_sweep, plan_sweeps
    from launch.sweep.executor import start_server
    from launch.sweep.sweep import show_runs, train_sweeps

    console.print("checking every run ...")
    loaded = [load_sweep(path) for path in sweeps]
    if not plan:
        start_server()  # imports the engine for the runs while they are checked here
    from olmo_ext.cost import check_device

    device = {"peak_tflops": peak_tflops, "mfu": mfu}
    check_device(**device)
    runs = plan_sweeps(loaded, out, overrides=override or [])
    if screen is not None:
        from launch.sweep.screen import screen_sweeps

        with _training():
            screen_sweeps(
                loaded, runs, budget=screen, out=out, jobs=jobs, retries=retries, plan=plan,
                **device, console=console, overrides=override or [],
            )  # fmt: skip
        return
    if plan:
        show_runs(runs, console, **device)
        return
    with _training():
        train_sweeps(runs, jobs=jobs, retries=retries, console=console)
    console.print(f"{len(runs)} runs done; figures and tables of each sweep:")
    for one in loaded:
        console.print(f"  olmo-ext report {out / one.name}")


@app.command()
def submit(
    source: Annotated[Path, typer.Argument(help="Experiment or sweep YAML.")],
    site: Annotated[Path, typer.Option(help="Site profile; configs/sites has some.")],
    override: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="A sweep goes to OUT/<sweep>/<labels>.")] = None,
    after: Annotated[str | None, typer.Option(help="Start after this job has succeeded.")] = None,
    prepare: Annotated[
        str | None, typer.Option(help="Make the corpus first: words of `olmo-ext prepare`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch files, submit nothing.")
    ] = False,
) -> None:
    """Hand a run or a sweep to SLURM; its jobs save, requeue and go on by themselves."""
    from launch.slurm.site import load_site
    from launch.slurm.submit import submit as run

    run(
        source, site=load_site(site), out=out, overrides=override or [], after=after,
        prepare=prepare, dry_run=dry_run, console=console,
    )  # fmt: skip


@app.command()
def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """What runs are at, what SLURM says of their jobs, and why a failed one failed."""
    from launch.slurm.status import show_status

    show_status(runs, as_json=json, console=console)


@app.command()
def confirm(
    chapter: Annotated[str, typer.Option(help="controls or mechanism.")] = "controls",
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/confirm"),
    out: Annotated[
        Path | None, typer.Option(help="Where findings.md goes; default: the runs' folder.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
) -> None:
    """Repeat the findings: the sweeps of configs/confirm, and docs/findings.md's numbers."""
    from launch.sweep.confirm import confirm as run

    with _training():
        run(chapter, runs, out=out, jobs=jobs, console=console)


@app.command("eval")
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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Checkpoints side by side.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Table of all rows: .csv or .parquet.")] = None,
) -> None:
    """Score every checkpoint on every task and split; what is in the records is skipped."""
    from eval.scores.evaluate import Choice, Done, chosen_sources, results
    from eval.scores.evaluate import evaluate as run
    from eval.scores.table import print_scores
    from eval.text import check_table_path, write_table

    if out is not None:
        check_table_path(out, option="--out")
    _check_device(device)
    choice = Choice(task, split or ("train", "test"), step)
    found = chosen_sources(sources, choice)
    asked = _tasks_of(plan) if plan is not None else None
    done: list[Done] = []
    with _bar(len(found)) as advance:
        for one in run(sources, choice=choice, asked=asked, device=device, jobs=jobs):
            done.append(one)
            said = one.problem or (f"{len(one.rows)} rows" if one.rows else "already there")
            advance(f"{one.source.path}: {said}")
    table = results(found, done, choice)
    print_scores(table, console)
    if out is not None:
        write_table(out, table)
        console.print(f"{out}: {len(table):,} rows", highlight=False)


@app.command()
def features(
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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    export: Annotated[Path | None, typer.Option(help="Table of all rows: .csv, .parquet.")] = None,
) -> None:
    """What the tasks' symbols hide, and which layer uses it; what is in the records is skipped."""
    from launch.show.features import measure_features

    measure_features(
        sources, das=das, tasks=task or (), steps=step or (), rank=rank, search_steps=search_steps,
        device=device, export=export, console=console, errors=errors,
    )  # fmt: skip


@app.command()
def reference(
    sources: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    corpus: Annotated[Path | None, typer.Option(help="Where the token files are now.")] = None,
    sample_tokens: Annotated[
        int | None, typer.Option(min=1, help="Scan an evenly spread sample of so many tokens.")
    ] = None,
    most: Annotated[int, typer.Option(min=2, help="Distinct statements measured a task.")] = 500,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Natural comparisons and additions of the corpus: their frequency, and loss by checkpoint."""
    from launch.show.reference import reference as run

    scan = {"corpus": corpus, "sample_tokens": sample_tokens}
    run(sources, scan=scan, most=most, device=device, console=console, errors=errors)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the source.")] = None,
) -> None:
    """Write the figures the records hold, CSV tables and one self-contained report.html."""
    from eval.report.tables import print_cells
    from eval.report.write import load_runs, write_report
    from eval.scores.cells import cells

    path = write_report(source, out, command=" ".join(["olmo-ext", *sys.argv[1:]]))
    print_cells(cells(load_runs(source)[0]), console)
    console.print(str(path))


@app.command()
def audit(
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
    json: Annotated[Path | None, typer.Option(help="Write all that was found to a file.")] = None,
) -> None:
    """Hold plan, checkpoints, ledger and text of a run against each other; status 1 if one differs.

    Writes nothing into the run's folder but what --export asks for.
    """
    from json import dumps

    from eval.audit.audit import audit_run
    from eval.audit.explain import explain_step
    from eval.audit.ledger import export_ledger, export_path
    from eval.records import replace_file
    from launch.show.audit import progress_bar, show_audit, show_explanation

    if explain is not None:
        explained = explain_step(run, explain, checkpoint=step, corpus=corpus, most=rows)
        show_explanation(explained, console)
        return
    target = export_path(run, export) if export is not None else None
    try:
        with progress_bar(errors) as progress:
            found = audit_run(
                run, step=step, corpus=corpus, full=full, sample=sample, progress=progress
            )
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        raise typer.Exit(130) from None
    show_audit(found, console)
    try:
        if json is not None:
            replace_file(json, (dumps(found.as_json(), indent=1) + "\n").encode())
        if target is not None:
            command = " ".join(["olmo-ext", *sys.argv[1:]])
            export_ledger(run, target, checkpoint=step, command=command)
            console.print(str(target), soft_wrap=True, highlight=False)
    except OSError as error:
        raise ConfigError(f"{error}; give --json and --export files that can be written") from None
    if found.status:
        raise typer.Exit(found.status)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint or a run; for olmo a HF folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    to: Annotated[str, typer.Option(help="hf (stock LlamaForCausalLM) or olmo, back.")] = "hf",
    step: Annotated[int | None, typer.Option(help="Of a run; default: its latest.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json or dolma-v1_5; default: the corpus's.")
    ] = None,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="Token ids alone.")] = False,
    dtype: Annotated[str, typer.Option(help="fp32, exact, or bf16, rounded.")] = "fp32",
) -> None:
    """Write a checkpoint for transformers and lm-evaluation-harness, or read one back."""
    from eval.export.huggingface import export_hf, import_hf

    if to == "olmo" and (step, tokenizer, no_tokenizer, dtype) != (None, None, False, "fp32"):
        raise ConfigError("--step, --tokenizer, --no-tokenizer and --dtype are for --to hf alone")
    if to == "olmo":
        console.print(f"{import_hf(source, out)}: config.yaml and model.pt, as eval reads them")
        return
    if to != "hf":
        raise ConfigError(f"--to must be hf or olmo, got {to!r}")
    done = export_hf(
        source, out, step=step, tokenizer=tokenizer, no_tokenizer=no_tokenizer, dtype=dtype
    )
    console.print(f"{out}: {done.provenance.path}, {done.num_params:,} parameters in {dtype}")


@app.command()
def doctor() -> None:
    """Look at Python, packages, devices and launchers; status 1 if a run cannot work here."""
    from launch.doctor import examine

    table = Table("", "what", "found", "remedy or reason")
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    failed = False
    for finding in examine():
        mark = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(mark, finding.what, finding.detail, finding.remedy)
        failed |= finding.status == "fail"
    console.print(table)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _training() -> Iterator[None]:
    """Ctrl-C and a failed run of many end with one message and a status."""
    from launch.sweep.executor import RunFailed

    try:
        yield
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on from the last checkpoints")
        raise typer.Exit(130) from None
    except RunFailed as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; leave it out or see doctor")


def _tasks_of(plan: Path) -> TaskSet:
    """The tasks of a run's folder or of an experiment file."""
    from eval.scores.evaluate import TaskSet, tasks_of_run

    if plan.is_dir():
        return tasks_of_run(plan)
    from olmo_ext.config import load_experiment
    from olmo_ext.prepare import prepare

    prepared = prepare(load_experiment(plan, corpus=False))
    vocab_size = prepared.experiment.train.model.vocab_size
    return TaskSet(tuple(prepared.stream.plan.tasks), vocab_size)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr; what it is called with is printed above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("checkpoints"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("", total=total)

        def advance(line: str) -> None:
            errors.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)

        yield advance


def _is_rank_zero() -> bool:
    """Of all ranks under torchrun one speaks."""
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Run the command line; bad input is one message and status 2."""
    # The engine registers its resolvers by OmegaConf's older name (olmo/config.py:104).
    warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
    try:
        app()
    except (ConfigError, FileNotFoundError) as error:
        if _is_rank_zero():
            errors.print("[bold red]error:[/] ", end="")
            errors.print(str(error), markup=False, highlight=False)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        # On whatever rank: the disk may be that node's alone.
        errors.print("[bold red]error:[/] ", end="")
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        errors.print(said, markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()

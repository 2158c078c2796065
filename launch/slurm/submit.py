"""submit: a run or a sweep as SLURM jobs that save, requeue and go on by themselves.

    olmo-ext submit configs/quickstart.yaml --site configs/sites/slurm-cpu.yaml --dry-run
    olmo-ext submit sweep.yaml --site my-site.yaml --out runs

Everything is checked before the first file is written; the files of a submission stay where they
are (RUN/logs/slurm/N or SWEEP/slurm/N), since a requeued job reads them again.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.files import replace_file
from eval.run import RUN
from launch.runs import Run
from launch.slurm.batch import Where, render_prepare, render_train, run_line, runs_text
from launch.slurm.jobs import append_event, ask_slurm, events_file, read_events
from launch.slurm.lead import Lead, reckon_lead
from launch.slurm.site import Cluster
from launch.slurm.submission import Plan, plan_submission
from launch.terminal import say, typed_command

_JOB = re.compile(r"\d+(_\d+)?")
_MAY_LIVE = ("submitted", "started", "requeued")
"""Events after which a job is in the queue, unless it was killed or cancelled since."""


def submit(
    source: Path,
    *,
    site: Cluster,
    out: Path | None,
    overrides: Sequence[str] = (),
    after: str | None = None,
    prepare: str | None = None,
    dry_run: bool = False,
    console: Console,
    errors: Console | None = None,
) -> list[str]:
    """Write the batch files and hand them to sbatch; the numbers of the jobs come back.

    Args:
        out: a sweep's runs go to OUT/<sweep>/<labels>; not for a single run.
        after: number of a job that must have succeeded first.
        prepare: words of `olmo-ext prepare` without --out; that job goes first.
        dry_run: print the files, write and submit nothing.
        errors: takes all that a dry run prints beside the script; default: console.

    Raises:
        ConfigError: before anything is written; or sbatch refused.
    """
    if after is not None and not _JOB.fullmatch(after):
        rule = "must be the number of a job, like 1234 or 1234_5"
        raise ConfigError(key="--after", value=after, rule=rule)
    if not dry_run and shutil.which("sbatch") is None:
        rule = "must be on this machine's PATH"
        remedy = "submit from a login node of the cluster, or look at the files with --dry-run"
        raise ConfigError(key="sbatch", rule=rule, remedy=remedy)
    words = _prepare_words(prepare)
    later = after is not None or words is not None
    plan = plan_submission(source, out=out, overrides=overrides, corpus_comes_later=later)
    for run in plan.runs.values():
        run_line(run)
        _check_ranks(site, run)
    corpora = {run.corpus for run in plan.runs.values()}
    corpus = next(iter(corpora))
    if words is not None and (len(corpora) > 1 or corpus is None):
        rule = "needs runs with one `corpus:`"
        raise ConfigError(key="--prepare", value=sorted(map(str, corpora)), rule=rule)
    aside = errors if dry_run and errors is not None else console
    waiting = _open_tasks(plan, aside, after=after, dry_run=dry_run)
    if not waiting:
        aside.print("nothing to submit")
        return []
    lead = _longest_lead(site, waiting)
    texts = _render(site, plan, waiting, lead, _free_folder(plan.root / "slurm"), words, corpus)
    _raw(aside, f"lead time: SIGUSR1 {lead.seconds} s before the end: {lead.why}")
    if dry_run:
        for path, text in texts.items():
            _raw(aside, f"\n==> {path} <==")
            # The script alone stands on stdout, so that `> job.sbatch` is one; it comes last.
            _raw(console if path == list(texts)[-1] else aside, text.rstrip())
        _raw(aside, f"\n{_how(list(texts), after)}\nnothing was written or submitted")
        return []
    for run in waiting.values():
        run.check_settings()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
        path.chmod(0o755 if path.suffix == ".sbatch" else 0o644)
    return _hand_over(plan, waiting, list(texts), after, console)


def _check_ranks(site: Cluster, run: Run) -> None:
    assert run.experiment is not None
    train = run.experiment.train
    ranks, batch = site.nodes * site.ranks, train.global_train_batch_size
    if batch % ranks:
        key = f"run {run.name}: nodes x ranks of the site profile"
        rule = f"must divide train.global_train_batch_size {batch}"
        raise ConfigError(key=key, value=ranks, rule=rule, remedy="choose other numbers of them")
    if site.gpus_per_node == 0 and not run.experiment.bf16_on_cpu and train.precision != "fp32":
        key, rule = f"run {run.name}: train.precision", "must be fp32: the site profile has no GPU"
        remedy = "set gpus_per_node, or -o train.precision=fp32"
        raise ConfigError(key=key, value=train.precision, rule=rule, remedy=remedy)


def _open_tasks(
    plan: Plan, console: Console, *, after: str | None, dry_run: bool
) -> dict[int, Run]:
    """The runs that are neither finished nor in the queue already, nor begin with such a run.

    Raises ConfigError if the queue cannot be asked about a run whose job may be in it: two jobs
    would train in one folder. A dry run says so and goes on.
    """
    queue, waiting = ask_slurm(), {}
    for number, run in plan.runs.items():
        events = read_events(run.folder)
        jobs = {event["job"] for event in events}
        doubt = queue.problem and events and events[-1]["event"] in _MAY_LIVE
        live = [job for job in sorted(jobs) if job in queue.jobs and queue.jobs[job].live]
        if run.finished:
            said = f"finished at step {run.saved_step}"
        elif live:
            said = f"in the queue already, job {live[0]}"
        else:
            waiting[number] = run
            if not doubt:
                continue
            error = ConfigError(
                key=f"run {run.name}",
                rule=f"has job {events[-1]['job']}, which may still be queued: the queue cannot "
                f"be asked ({queue.problem})",
                remedy="try again when squeue answers, or, if you know that the job is gone, move "
                f"{events_file(run.folder)} away",
            )
            if not dry_run:
                raise error
            say(console, str(error))
            continue
        say(console, f"{run.name}: {said}; not submitted")
    first = {run.folder for run in waiting.values()}
    for number, run in list(waiting.items()):
        if run.waits and run.parent and (after is None or run.parent.folder in first):
            del waiting[number]
            said = f"{run.name}: begins with {run.parent.name}; submit again with --after its job"
            say(console, f"{said}, or when it has saved; not submitted")
    return waiting


def _longest_lead(site: Cluster, waiting: dict[int, Run]) -> Lead:
    """An array has one; runs of one shape that have not begun are reckoned once."""
    leads: dict[tuple[object, ...], Lead] = {}
    for run in waiting.values():
        assert run.experiment is not None
        train = run.experiment.train
        begun = run.folder if (run.folder / RUN).exists() else None
        key = (str(train.model), train.global_train_batch_size, str(train.precision), begun)
        if key not in leads:
            leads[key] = reckon_lead(site, train, num_steps=run.num_steps, folder=run.folder)
    return max(leads.values(), key=lambda lead: lead.seconds)


def _prepare_words(prepare: str | None) -> list[str] | None:
    if prepare is None:
        return None
    try:
        words = shlex.split(prepare)
    except ValueError as error:
        rule = f"must be a command line ({error})"
        raise ConfigError(key="--prepare", value=prepare, rule=rule) from None
    if not words or any(word == "--out" or word.startswith("--out=") for word in words):
        rule = "takes the words of `olmo-ext prepare` without --out, for example --prepare "
        rule += """"'TEXT/*.json.gz' --tokenizer dolma2\""""
        remedy = "the corpus goes where the runs look for it"
        raise ConfigError(key="--prepare", value=prepare, rule=rule, remedy=remedy)
    return words


def _free_folder(parent: Path) -> Path:
    """PARENT/N with the first number not taken: jobs of earlier submissions read theirs again."""
    taken = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()]
    return parent / str(max(taken, default=0) + 1)


def _render(
    site: Cluster, plan: Plan, waiting: dict[int, Run], lead: Lead, folder: Path,
    words: list[str] | None, corpus: Path | None,
) -> dict[Path, str]:  # fmt: skip
    """Every file's text, in the order in which they are handed over."""
    where = Where(folder / "train.sbatch", typed_command(), Path.cwd(), Path(sys.executable).parent)
    texts = {}
    if words is not None:
        assert corpus is not None
        prepare = render_prepare(site, words, corpus, name=plan.name, where=where)
        texts[folder / "prepare.sbatch"] = prepare
    runs_file = folder / "runs.txt" if plan.is_sweep else None
    if runs_file is not None:
        texts[runs_file] = runs_text(plan.runs)
    texts[where.script] = render_train(
        site, waiting, name=plan.name, lead=lead, where=where, runs_file=runs_file
    )
    return texts


def _hand_over(
    plan: Plan, waiting: dict[int, Run], files: list[Path], after: str | None, console: Console
) -> list[str]:
    """sbatch, and the numbers into the folders of what they train."""
    jobs: list[str] = []
    needed = after
    for script in (path for path in files if path.suffix == ".sbatch"):
        try:
            job = _sbatch(script, needed)
        except ConfigError:
            if jobs:  # the corpus would be made for nobody
                subprocess.run(["scancel", *jobs], check=False)
            raise
        jobs.append(job)
        waits = f", after {needed}" if needed else ""
        _raw(console, f"job {job}{waits}: {script}")
        needed = job
    event = {"event": "submitted", "script": str(files[-1]), "step": None}
    for number, run in waiting.items():
        name = f"{jobs[-1]}_{number}" if plan.is_sweep else jobs[-1]
        append_event(events_file(run.folder), event | {"job": name})
    if plan.is_sweep:
        told = {"job": jobs[-1], "runs": len(waiting), "jobs": jobs}
        append_event(plan.root / "slurm" / "jobs.jsonl", event | told)
    _raw(console, f"olmo-ext status {shlex.quote(str(_shown(plan)))}")
    return jobs


def _shown(plan: Plan) -> Path:
    return plan.root if plan.is_sweep else plan.root.parent


def _sbatch(script: Path, needed: str | None) -> str:
    command = ["sbatch", "--parsable", *_depends(needed), str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise ConfigError(key=shlex.join(command), rule=f"was refused: {said}")
    return done.stdout.strip().split(";")[0]  # with a cluster's name behind it


def _depends(needed: str | None) -> list[str]:
    return [f"--dependency=afterok:{needed}", "--kill-on-invalid-dep=yes"] if needed else []


def _how(files: Sequence[Path], after: str | None) -> str:
    """The lines that `submit` would run."""
    lines, needed = [], after
    for script in (path for path in files if path.suffix == ".sbatch"):
        lines.append(shlex.join(["sbatch", "--parsable", *_depends(needed), str(script)]))
        needed = "JOB"
    return "\n".join(lines)


def _raw(console: Console, text: str) -> None:
    """As it stands: no markup, no wrapping; it may be pasted into a shell."""
    console.file.write(text + "\n")
    console.file.flush()

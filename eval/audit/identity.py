"""Audit, first part: is it one run? The plan and every checkpoint say the same of themselves.

check_plan(open_run(Path("runs/w32")))
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_injection.corpus.manifest import digest
from eval.audit.ledger import SavedCheckpoint
from eval.audit.subject import (
    NOT_CHECKED,
    Progress,
    Subject,
    Verdict,
    judge,
    listing,
    no_progress,
    value_at,
)
from eval.checkpoints.checkpoint import CHECKSUMS, FILES, verify_checkpoint
from eval.run import differences
from eval.text import plural

SETTINGS = {
    "train.global_train_batch_size": "plan.batch_size",
    "train.model.max_sequence_length": "plan.seq_len",
    "train.data.memmap_dtype": "memmap_dtype",
    "train.seed": "train.seed",
    "train.run_name": "train.run_name",
}
"""What experiment.yaml says of the stream beside the injection, and where plan.json has it."""

REMOVED = "a later one is whole: a run that keeps its last ones removes it, or died as it did"


def check_plan(subject: Subject) -> Verdict:
    """Every witness of the plan names the same one, and experiment.yaml still compiles to it."""
    problems = [subject.identity_problem] if subject.identity_problem else []
    problems += [subject.plan_problem] if subject.plan_problem else []
    by_hash: dict[str, list[str]] = {}
    canonical: dict[str, dict[str, Any]] = {}
    for name, said, plan in _witnesses(subject):
        by_hash.setdefault(said, []).append(name)
        if plan is None:
            continue
        if (found := digest(plan)) != said:
            problems.append(f"{name}: its plan has the hash {found[:12]}, but it says {said[:12]}")
        canonical.setdefault(found, plan)
    # The odd one out is what was changed; of two alike, the one that is not the compiled plan.
    compiled = subject.plan.hash if subject.plan is not None else ""
    votes = Counter({said: len(names) for said, names in by_hash.items()})
    common = max(by_hash, key=lambda said: (votes[said], said == compiled))
    problems += [
        f"{listing(names)}: plan {said[:12]}; {listing(by_hash[common])}: {common[:12]}"
        for said, names in by_hash.items()
        if said != common
    ]
    for found, plan in canonical.items():
        if found != common and common in canonical:
            where = listing(by_hash.get(found, ["one of them"]))
            problems += [
                f"{key}: {odd!r} in {where}, {others!r} elsewhere"
                for key, odd, others in differences(plan, canonical[common], prefix="plan.")
            ]
    problems += _other_settings(subject)
    if subject.unknown_family is not None and not problems:
        said = f"unknown family {subject.unknown_family}"
        return Verdict("plan", NOT_CHECKED, said, numbers={"witnesses": by_hash})
    agreed = (
        f"{subject.identity['plan_hash'][:12]}: experiment.yaml recompiled, plan.json, "
        f"{plural(len(subject.checkpoints), 'checkpoint')} and "
        f"{plural(len(subject.segments), 'ledger segment')} agree"
    )
    return judge("plan", problems, agreed, numbers={"witnesses": by_hash})


def _witnesses(subject: Subject) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Who names a plan, the hash named, and the canonical plan where it stands beside it."""
    witnesses: list[tuple[str, str, dict[str, Any] | None]] = []
    if subject.plan is not None:
        witnesses.append(("experiment.yaml", subject.plan.hash, subject.plan.canonical))
    if subject.identity_problem is None:
        identity = subject.identity
        witnesses.append(("plan.json", str(identity["plan_hash"]), identity["plan"]))
    for checkpoint in subject.checkpoints:
        if checkpoint.identity is not None:
            said, plan = checkpoint.identity.get("plan_hash"), checkpoint.identity.get("plan")
            witnesses.append((checkpoint.path.name, str(said), plan))
    for number, segment in subject.segments.items():
        if segment.header:
            said = str(segment.header.get("plan_hash"))
            witnesses.append((f"ledger segment {number}", said, None))
    return witnesses


def _other_settings(subject: Subject) -> list[str]:
    """What experiment.yaml says otherwise than plan.json of the rest of the stream."""
    wanted = {key: value_at(subject.identity, dotted) for key, dotted in SETTINGS.items()}
    found = {key: subject.setting(key) for key in wanted}
    seed = subject.setting("train.data.seed")
    found["the data seed"] = seed if seed is not None else subject.setting("train.seed")
    wanted["the data seed"] = subject.identity["data_seed"]
    return [
        f"{key} is {found[key]!r} in experiment.yaml, {wanted[key]!r} in plan.json"
        for key in wanted
        if subject.experiment and wanted[key] is not None and found[key] != wanted[key]
    ]


def check_checkpoints(
    subject: Subject, *, full: bool = False, progress: Progress = no_progress
) -> Verdict:
    """Every checkpoint is of this run and step; the audited one's files, with `full` all files,
    are what was written."""
    notes = _set_aside(subject)
    problems: list[str] = []
    for path, lacks in _incomplete(subject):
        said = f"{path.name} is incomplete: {', '.join(lacks)} missing"
        if _is_older(subject, path):
            notes.append(f"{said}; {REMOVED}")
        else:
            problems.append(said)
    if not subject.checkpoints:
        said = "there is no checkpoint yet"
        if problems:
            return judge("checkpoints", problems, said, notes=notes)
        return Verdict("checkpoints", NOT_CHECKED, said, notes=tuple(notes))
    verified = []
    for number, checkpoint in enumerate(subject.checkpoints):
        progress("checkpoints", number, len(subject.checkpoints))
        problems += [f"{checkpoint.path.name}: {said}" for said in _identity(subject, checkpoint)]
        if full or checkpoint == subject.audited or checkpoint.identity is None:
            wrong = _files(checkpoint)
            files = [*FILES, CHECKSUMS] if checkpoint.in_ledger else FILES
            removed = not all((checkpoint.path / name).exists() for name in files)
            if removed and _is_older(subject, checkpoint.path):
                # A run that trains removes it at this moment, or has: what it was is no finding.
                notes.append(f"{checkpoint.path.name} was not verified; {REMOVED}")
                continue
            problems += [f"{checkpoint.path.name}: {said}" for said in wrong]
            verified.append(checkpoint.path.name)
    agreed = (
        f"{plural(len(subject.checkpoints), 'checkpoint')} of this run; SHA256SUMS hold for "
        f"{listing(verified)}"
    )
    if not full and len(verified) < len(subject.checkpoints):
        notes.append("the files of the other checkpoints are read with --full")
    return judge("checkpoints", problems, agreed, notes=notes, numbers={"verified": verified})


def _identity(subject: Subject, checkpoint: SavedCheckpoint) -> list[str]:
    """What a checkpoint says of itself otherwise than its name or plan.json (plans apart)."""
    if checkpoint.identity is None:
        return ["olmo_ext.json cannot be read"]
    # One from before the ledger holds no step.
    inside = checkpoint.identity.get("step", checkpoint.step)
    problems = [checkpoint.digest_problem] if checkpoint.digest_problem is not None else []
    if inside != checkpoint.step:
        problems.append(f"step {inside} stands inside")
    apart = {"step", "ledger", "plan", "plan_hash"}
    ours = {key: value for key, value in checkpoint.identity.items() if key not in apart}
    theirs = {key: value for key, value in subject.identity.items() if key not in apart}
    found = differences(ours, theirs, later=False)
    return problems + [f"{key} is {a!r}, {b!r} in plan.json" for key, a, b in found]


def _files(checkpoint: SavedCheckpoint) -> list[str]:
    # Checksums are as old as the ledger: with a place in it but without them something is gone.
    if checkpoint.in_ledger and not (checkpoint.path / CHECKSUMS).is_file():
        return [f"{CHECKSUMS} is missing"]
    try:
        return verify_checkpoint(checkpoint.path)
    except FileNotFoundError as error:  # removed while it was read
        return [f"{Path(error.filename).name} is missing"]


def _set_aside(subject: Subject) -> list[str]:
    """What is said of folders that no start of the run takes for a checkpoint."""
    notes = []
    for path in sorted(subject.folder.glob("step*-unsharded.*")):
        name, _, why = path.name.partition(".")
        notes.append(f"{name} was set aside by a later start: {why}")
    for path in sorted(subject.folder.glob("step*-tmp")):
        notes.append(f"{path.name} was not finished: a killed writer, or one at work")
    return notes


def _is_older(subject: Subject, path: Path) -> bool:
    """Whether a checkpoint's folder is of a step before the latest that can be read."""
    whole = [c.step for c in subject.checkpoints if c.identity is not None]
    step = path.name.removeprefix("step").removesuffix("-unsharded")
    return step.isdecimal() and int(step) < max(whole, default=0)


def _incomplete(subject: Subject) -> list[tuple[Path, list[str]]]:
    """Folders with the name of a checkpoint, and the files that each lacks."""
    complete = {checkpoint.path for checkpoint in subject.checkpoints}
    found = []
    for path in sorted(subject.folder.glob("step*-unsharded")):
        if path in complete or path.is_symlink():
            continue
        missing = [name for name in FILES if not (path / name).exists()]
        if missing:  # else it was renamed into place just now
            found.append((path, missing))
    return found

"""Audit a run: are plan, checkpoints, ledger and text of one piece?

    audit = audit_run("runs/w32", full=True)
    audit.status, audit.verdicts[0].said

Six checks one after another, each with a verdict; docs/audit.md says what each one proves and what
it does not. Nothing is written, and a run that trains at this moment can be audited.
"""

from __future__ import annotations

from pathlib import Path

from data_injection.errors import ConfigError
from eval.audit.corpus import check_corpus, load_decoder
from eval.audit.identity import check_checkpoints, check_plan
from eval.audit.ledger import RunLedger, trace_ledger
from eval.audit.rows import check_rows
from eval.audit.segments import check_segments
from eval.audit.stream import check_stream
from eval.audit.subject import Audit, Progress, Subject, no_progress, open_run


def audit_run(
    run: str | Path,
    *,
    step: int | None = None,
    corpus: Path | None = None,
    full: bool = False,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Audit:
    """All verdicts on a run's folder.

    Args:
        step: of the checkpoint whose weights are meant; None is the latest.
        corpus: folder of the token files, where they are no longer where the run read them.
        full: read every file of every checkpoint and every token of the stream.
        sample: steps of the stream that may be read without `full`, drawn with `seed`; None is
            those of `SAMPLE_TOKENS` tokens.

    Raises:
        FileNotFoundError: no run there, or with `full` no corpus.
        ConfigError: no checkpoint after that step, or a sample of less than one.
    """
    if sample is not None and sample < 1:
        remedy = "leave it out for the default"
        raise ConfigError(key="--sample", value=sample, rule="must be at least 1", remedy=remedy)
    subject = open_run(Path(run), step=step)
    plan = subject.trained_plan()
    corpus_verdict, host = check_corpus(subject, folder=corpus, full=full, progress=progress)
    verdicts = [check_plan(subject), check_checkpoints(subject, full=full, progress=progress)]
    verdicts.append(check_segments(subject))
    decode = load_decoder(subject, corpus)
    verdicts += check_rows(subject, _trace(subject), plan, decode=decode, progress=progress)
    verdicts.append(corpus_verdict)
    verdicts.append(
        check_stream(subject, host, plan, full=full, sample=sample, seed=seed, progress=progress)
    )
    return Audit(
        run=str(run),
        step=subject.audited.step if subject.audited is not None else None,
        plan_hash=str(subject.identity["plan_hash"]),
        verdicts=tuple(verdicts),
    )


def _trace(subject: Subject) -> RunLedger | None:
    lost = subject.audited is not None and subject.audited.place_problem is not None
    return None if lost or not subject.segments else trace_ledger(subject.segments, subject.audited)

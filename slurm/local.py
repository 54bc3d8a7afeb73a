"""A pipeline on this machine, without SLURM: one command after another, or several side by side."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import filterfalse
from pathlib import Path

from mae_curriculum.run.stop import EXIT_RESUMABLE, catch_signals
from slurm.checks import usable_cores
from slurm.pipeline_config import PipelineRun
from slurm.submit import run_in_process

POLL_SECONDS = 0.2

SHARED = "side-by-side"
"""File that shows that runs of a pipeline have shared a machine."""


def run_here(groups: Sequence[Sequence[PipelineRun]], at_once: int | None, shared: Path) -> int:
    """Run what has not finished, each pretraining and then its evaluations; returns the exit code.

    Once a command fails or is stopped, no other is started, and its exit code is returned.

    groups   the pretrainings, then for each evaluation one run per pretraining.
    at_once  number of pretrainings, each followed by its evaluations, that run side by side, in processes of their own
             that share the processor's cores and print to LABEL.log beside their run folders; None for one after
             another, in this process.
    shared   file that is made if several run side by side.
    """
    chains = deque(unfinished for runs in zip(*groups, strict=True) if (unfinished := _unfinished(runs)))
    if at_once and min(at_once, len(chains)) > 1:
        shared.touch()
    return _run_side_by_side(chains, at_once) if at_once else _run_in_turn(chains)


def _unfinished(runs: Sequence[PipelineRun]) -> list[PipelineRun]:
    return list(filterfalse(lambda run: run.result.exists(), runs))


def _run_in_turn(chains: Sequence[Sequence[PipelineRun]]) -> int:
    for chain in chains:
        for run in chain:
            package, subcommand, *arguments = run.task.command
            print(f"{run.folder}: {package} {subcommand}", flush=True)
            run.keep_settings()
            code = run_in_process(package, subcommand, [*arguments, *run.flags])
            if code:
                return code
    return 0


def _run_side_by_side(chains: deque[list[PipelineRun]], at_once: int) -> int:
    threads = max(1, usable_cores() // at_once)
    running: dict[subprocess.Popen[bytes], list[PipelineRun]] = {}
    code = 0
    with catch_signals() as stop:
        while chains or running:
            while chains and len(running) < at_once:
                chain = chains.popleft()
                running[_start(chain[0], threads)] = chain
            time.sleep(POLL_SECONDS)
            if stop.signal_name is not None:
                chains.clear()
                code = EXIT_RESUMABLE
                for process in running:
                    process.terminate()
            for process in [process for process in running if process.poll() is not None]:
                run, *rest = running.pop(process)
                if process.returncode and stop.signal_name is None:
                    print(_describe_failure(run, process.returncode), file=sys.stderr, flush=True)
                    chains.clear()
                code = code or process.returncode
                if rest and not code:
                    chains.appendleft(rest)
    return code


def _start(run: PipelineRun, threads: int) -> subprocess.Popen[bytes]:
    """Start the command of a run, in a process group of its own: Ctrl-C reaches it through this process alone."""
    print(f"{run.folder}: {' '.join(run.task.command[:2])}, output in {_log(run)}", flush=True)
    run.keep_settings()
    with _log(run).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *run.task.command, *run.flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            process_group=0,
        )


def _log(run: PipelineRun) -> Path:
    return run.folder.with_name(f"{run.folder.name}.log")


def _describe_failure(run: PipelineRun, code: int) -> str:
    lines = _log(run).read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"{run.folder}: exit code {code}: {last} (output in {_log(run)})"

"""The course of a run, whatever is trained: open its folder, resume, train, conclude."""

from collections.abc import Callable
from typing import Any

from mae_curriculum.files import read_json, write_json
from mae_curriculum.run.stop import Stop, StoppedError
from mae_curriculum.training.beginning import log_beginning
from mae_curriculum.training.loop import Hooks, run_missed_hooks, stop_before_end, train_
from mae_curriculum.training.session import RunSession, open_session, resume_
from mae_curriculum.training.step import Training


def run_training(
    training: Training[Any], *, command: str, stop: Stop, build_hooks: Callable[[RunSession], Hooks]
) -> dict[str, Any] | None:
    """Train a run to its end, from the beginning or from its newest checkpoint, and write its summary.

    command      what the run is: "pretrain", "finetune" or "linprobe".
    build_hooks  returns what the run does besides training, in its session.
    Returns      the summary, of a finished run the one that it wrote; None if the run was asked to stop.
    Raises       ConfigError if the run folder is another run's or in use, or if training diverges.
    """
    world, total = training.world, training.clock.total_steps
    with open_session(training.config, world, command=command) as session:
        stopwatch, step = resume_(training, session)
        summary: dict[str, Any]
        if step == total and session.folder.summary.exists():
            world.log(f"{session.folder.path} is finished already")
            summary = read_json(session.folder.summary)
            return summary
        if step:
            world.log(f"{session.folder.path} continues from step {step} of {total}")
        log_beginning(training, command, first_step=step)
        hooks = build_hooks(session)
        session.log_start(training, step=step, **hooks.facts)
        if not run_missed_hooks(training, session, stopwatch, hooks, steps_done=step, stop=stop):
            return None
        if not train_(training, session, stopwatch, hooks, first_step=step, stop=stop):
            return None

        def check() -> None:
            stop_before_end(session, world, stop, step=total)

        try:
            summary = hooks.conclude(stopwatch, check)
        except StoppedError:
            return None
        world.on_main(lambda: write_json(session.folder.summary, summary))
        session.journal.write("end", **summary)
        return summary

"""Runs that are killed, stopped, starved and damaged, by real signals, real full disks and real second jobs."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.report.runs import read_runs
from mae_curriculum.report.tables import problems
from mae_curriculum.run.checkpoint import steps_of
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.journal import IDEMPOTENT_EVENTS
from tests.processes import Process, Ranks
from tests.runs import (
    command,
    equal,
    finish,
    newest_state,
    options,
    rows,
    stop_midway,
    torchrun,
    two_processes,
    weights,
)

TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL

REUSED = {
    "curriculum__stages": "[{share: 0.6, size: 160, replay_buffer: {factor: 4, steps: 8}}, {share: 0.4, size: 224}]",
    "data__repeats": 2,
}
"""A replay buffer, and two crops in a row of each image."""

Pairs = Sequence[tuple[signal.Signals, signal.Signals]]

Running = Process | Ranks | subprocess.Popen[str]


def wait_for(fact: Callable[[], Any], process: Running, seconds: float = 60) -> None:
    """Wait until something is the case, while a process goes on."""
    until = time.monotonic() + seconds
    while not fact():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def processes_of(process: Process | subprocess.Popen[str]) -> list[int]:
    """List the processes that a process started."""
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def steps_reported(run: Path) -> list[int]:
    return [row["steps_done"] for row in rows(run, "step")] if (run / "journal.jsonl").exists() else []


def interrupt_until_done(start: Callable[[], Process | Ranks], run: Path, *, pairs: Pairs, seed: int) -> int:
    """Start a command again and again, each time send a pair of signals at random moments, let it end; counts pairs.

    Each time it must end by itself, resumable, and leave no process behind.
    """
    chance = random.Random(seed)
    for sent, pair in enumerate(pairs):
        process, reported = start(), len(steps_reported(run))
        until = time.monotonic() + 60
        while process.poll() is None and len(steps_reported(run)) <= reported + 1:
            assert time.monotonic() < until
            time.sleep(0.02)
        for number in pair:
            time.sleep(chance.random() * 0.3)
            process.send(number)
        done = finish(process)
        assert done.returncode in (0, 75, -signal.SIGKILL), (pair, done.stderr)
        assert done.returncode != -signal.SIGKILL or signal.SIGKILL in pair
        while not process.is_gone():
            assert time.monotonic() < until
            time.sleep(0.02)
        if done.returncode == 0:
            return sent
    done = finish(start())
    assert done.returncode == 0, done.stderr
    return len(pairs)


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {**REUSED, "micro_batch": 32}
    arguments = options(run, saving__every_minutes=1e-9, data__workers=2, tracking__every_steps=2, **changes)
    arguments += ["--knn.every_epochs", "1", "--tracking.pictures", "1"]
    whole = tmp_path / "whole"
    assert command("pretrain", *options(whole, **changes)).returncode == 0
    start = partial(Process, "mae_curriculum", "pretrain", *arguments)
    kills = interrupt_until_done(start, run, pairs=[(KILL, KILL), (TERM, KILL), (INT, TERM), (KILL, KILL)], seed=0)
    assert kills >= 3
    assert len(rows(run, "start")) >= kills  # each start but the last was cut short
    assert equal(weights(run), weights(whole))
    first, second = newest_state(run)["optimizer"]["state"], newest_state(whole)["optimizer"]["state"]
    assert all(equal(first[key], second[key]) for key in second)
    steps = {event: [row["steps_done"] for row in rows(run, event)] for event in IDEMPOTENT_EVENTS}
    assert all(done == sorted({*done}) for done in steps.values())
    assert [len(steps["evaluation"]), len(steps["pictures"])] == [3, 2]


def test_two_processes_killed_together_end_with_the_same_bits(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert two_processes("pretrain", *options(whole, **REUSED)).returncode == 0
    arguments = options(run, saving__every_minutes=1e-9, tracking__every_steps=2, **REUSED)
    start = partial(Ranks, "mae_curriculum", "pretrain", *arguments)
    assert interrupt_until_done(start, run, pairs=[(KILL, KILL)], seed=1) == 1
    assert [row["steps_done"] for row in rows(run, "start")][1] in range(1, 67)  # it was really cut short, and went on
    assert equal(weights(run), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_signals_of_schedulers_save_and_stop_a_run_between_reports(number: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = Process("mae_curriculum", "pretrain", *options(run, epochs=30, tracking__every_steps=100))
    wait_for(lambda: (run / "journal.jsonl").exists() and rows(run, "stage"), process)
    for repeated in (number, number, signal.SIGTERM):  # by a scheduler, by the launcher, to the group
        os.kill(process.pid, repeated)
        time.sleep(0.01)
    output = process.communicate()[1]
    assert process.returncode == 75
    assert f"{number.name}: saved and stopped at step" in output
    assert rows(run, "stop")[0]["reason"] == number.name


def test_a_run_stopped_during_its_final_evaluation_finishes_after_a_restart(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = options(run, knn__batch_images=2, knn__images="null")
    process = Process("mae_curriculum", "pretrain", *flags)
    wait_for(lambda: (run / "journal.jsonl").exists() and rows(run, "save"), process)
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate()[1]
    assert process.returncode == 75
    assert "SIGTERM: " in output
    assert "run the same command to resume" in output
    assert (rows(run, "stop")[0]["steps_done"], rows(run, "evaluation")) == (67, [])
    done = command("pretrain", *flags)
    assert done.returncode == 0
    assert [row["steps_done"] for row in rows(run, "evaluation")] == [67]
    assert equal(weights(run), weights(finished))


def test_two_processes_stop_at_the_same_step_whichever_gets_the_signal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = options(run, tracking__every_steps=2)
    process = Ranks("mae_curriculum", "pretrain", *flags)
    wait_for(lambda: steps_reported(run), process)
    os.kill(process.ranks[1].pid, signal.SIGTERM)
    output = process.communicate()[1]
    assert "SIGTERM: saved and stopped at step" in output
    stopped = rows(run, "stop")[0]["steps_done"]
    assert stopped == steps_of(RunFolder(run).checkpoints[-1])
    assert two_processes("pretrain", *flags).returncode == 0
    assert [row["steps_done"] for row in rows(run, "start")] == [0, stopped]


def test_a_time_limit_saves_and_stops_before_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start_time = time.monotonic()
    process = Process("mae_curriculum", "pretrain", *options(run, epochs=400, time_limit="0:12"))
    output = process.communicate()[1]
    assert process.returncode == 75
    began = rows(run, "start")[0]["time"]
    assert rows(run, "save")[-1]["time"] - began < 12
    assert time.monotonic() - start_time < 25  # Python's own start counts for nobody
    assert "time limit: saved and stopped at step" in output
    assert rows(run, "stop")[0]["reason"] == "time limit"


def test_the_schedulers_own_end_is_a_time_limit(tmp_path: Path) -> None:
    environment = {"SLURM_JOB_END_TIME": str(int(time.time()) + 15)}
    done = command("pretrain", *options(tmp_path / "run", epochs=400), **environment)
    assert done.returncode == 75
    assert "time limit: saved and stopped" in done.stderr


def test_a_second_job_on_a_run_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = Process("mae_curriculum", "pretrain", *options(run, epochs=400))
    wait_for(lambda: steps_reported(run), process)
    second = command("pretrain", *options(run, epochs=400))
    assert second.returncode == 2
    assert f"is in use by process {process.pid} on" in second.stderr
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    assert not (run / "lock.json").exists()


def test_a_damaged_checkpoint_is_logged_and_the_previous_one_leads_to_the_same_bits(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = Process("mae_curriculum", "pretrain", *options(run, saving__every_minutes=1e-9))
    wait_for(lambda: len(RunFolder(run).checkpoints) == 2, process)
    process.send(TERM)
    assert finish(process).returncode == 75
    newest = RunFolder(run).checkpoints[-1]
    newest.write_bytes(newest.read_bytes()[:-500])
    (run / "checkpoints" / ".checkpoint.tmp").write_bytes(b"half of one")  # as a kill in mid-write leaves it
    assert command("pretrain", *options(run)).returncode == 0
    assert rows(run, "damaged_checkpoint") == [rows(run, "damaged_checkpoint")[0]]
    assert rows(run, "damaged_checkpoint")[0]["name"] == newest.name
    assert rows(run, "start")[-1]["steps_done"] < steps_of(newest)
    assert equal(weights(run), weights(finished))


def test_a_full_disk_does_not_end_a_run_which_saves_once_there_is_space(
    finished: Path, small_disk: Callable[[str], Path]
) -> None:
    run = small_disk("3m") / "run"  # a checkpoint takes 1 MB; saving at each report, more and more are kept
    process = Process("mae_curriculum", "pretrain", *options(run, saving__every_minutes=1e-9, saving__keep=99))
    output = ""
    while "trying again" not in output:
        output += process.stderr.readline()
        assert process.poll() is None
    assert "warning: the checkpoint could not be written: [Errno 28] No space left on device" in output
    kept = RunFolder(run).newest()  # the ones before are unharmed
    assert kept is not None
    wait_for(lambda: steps_reported(run)[-1:] == [67], process)  # it trains to its end meanwhile
    small_disk("40m")
    output += process.communicate()[1]
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert equal(weights(run), weights(finished))
    assert rows(run, "save_failed")


def test_a_stop_on_a_full_disk_is_an_error_and_keeps_the_previous_checkpoint(small_disk: Callable[[str], Path]) -> None:
    run = small_disk("3m") / "run"
    flags = options(run, saving__every_minutes=1e-9, saving__keep=99, epochs=90)
    process = Process("mae_curriculum", "pretrain", *flags)
    while "trying again" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate()[1]
    assert process.returncode == 2
    assert "error: [Errno 28] No space left on device" in output
    assert RunFolder(run).newest() is not None


def test_checkpoints_of_chosen_epochs_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *options(run, saving__keep=1, saving__keep_every_epochs=1)]) == 0
    assert [steps_of(path) for path in RunFolder(run).checkpoints] == [23, 45, 67]  # 1438 images, 64 a step


def test_torchrun_starts_a_run_again_when_a_process_dies_and_saves_it_when_stopped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun("pretrain", *options(run, epochs=400, saving__every_minutes=1e-9), restarts=1)
    wait_for(lambda: steps_reported(run) and RunFolder(run).checkpoints, process)
    os.kill(processes_of(process)[1], signal.SIGKILL)
    wait_for(lambda: len(rows(run, "start")) == 2, process)  # within a minute
    first, again = [row["steps_done"] for row in rows(run, "start")]
    assert first == 0 < again
    wait_for(lambda: steps_reported(run)[-1] > again + 5, process)
    everyone = [process.pid, *processes_of(process)]
    for pid in 2 * everyone:  # as a scheduler and a launcher do
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    output = process.communicate(timeout=60)[1]
    assert "exitcode: -9" in output  # the cause of the new start
    assert rows(run, "stop")[0]["reason"] == "SIGTERM"
    assert rows(run, "stop")[0]["steps_done"] == steps_of(RunFolder(run).checkpoints[-1])
    assert not (run / "lock.json").exists()


def test_processes_whose_launcher_dies_save_and_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun("pretrain", *options(run, epochs=400))
    wait_for(lambda: steps_reported(run), process)
    ranks = processes_of(process)
    process.kill()
    process.communicate(timeout=60)  # returns once no rank holds the other end of its streams
    until = time.monotonic() + 10
    while any(map(is_running, ranks)):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert rows(run, "stop")[0]["reason"] == "the launcher has died"
    assert rows(run, "stop")[0]["steps_done"] == steps_of(RunFolder(run).checkpoints[-1])


def test_a_run_that_waits_for_data_says_so_and_stops_when_asked_or_when_a_loading_process_dies(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = options(run, data__workers=1, tracking__every_steps=2)
    process = Process("tests/spoiled.py", "stall", 1000, "pretrain", *flags)
    wait_for(lambda: steps_reported(run) and rows(run, "stall"), process)
    wait = rows(run, "stall")[0]
    assert wait["seconds"] in range(10, 14)
    assert [name.split()[0] for name in wait["files"]] == ["image"]
    assert f"rank 0 on {wait['host']} had no images for {wait['seconds']} s" in problems(read_runs([run])[0])
    os.kill(process.pid, signal.SIGTERM)
    start_time = time.monotonic()
    output = process.communicate()[1]
    assert time.monotonic() - start_time < 5
    assert (process.returncode, "SIGTERM: saved and stopped at step" in output) == (75, True)
    stopped = rows(run, "stop")[0]["steps_done"]

    process = Process("mae_curriculum", "pretrain", *flags)
    wait_for(lambda: steps_reported(run)[-1] > stopped, process)
    os.kill(processes_of(process)[-1], signal.SIGKILL)
    output = process.communicate()[1]
    assert process.returncode == 75
    assert "a process that loads images was killed, perhaps for lack of memory: saved and stopped" in output
    assert "Traceback" not in output
    assert command("pretrain", *flags).returncode == 0
    assert equal(weights(run), weights(finished))


def test_a_run_resumes_with_another_world_size_and_the_same_images(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_midway(run, "pretrain", *options(run))
    assert two_processes("pretrain", *options(run)).returncode == 0
    losses = {row["steps_done"]: row["loss"] for row in rows(run, "step")}
    alone = {row["steps_done"]: row["loss"] for row in rows(finished, "step")}
    assert losses[67] == pytest.approx(alone[67], abs=1e-4)
    assert [row["world_size"] for row in rows(run, "start")] == [1, 2]


def test_a_run_goes_on_while_its_folder_is_away_and_makes_its_checkpoints_folder_again(
    finished: Path, tmp_path: Path
) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    process = Process("mae_curriculum", "pretrain", *options(run, saving__every_minutes=1e-9))
    wait_for(lambda: steps_reported(run), process)
    run.rename(away)
    time.sleep(1)
    away.rename(run)
    shutil.rmtree(run / "checkpoints")
    output = process.communicate()[1]
    assert process.returncode == 0, output
    assert equal(weights(run), weights(finished))
    assert steps_reported(run)[-1] == 67

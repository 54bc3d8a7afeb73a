import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mae_curriculum.distributed import Agreement, World, connect, picklable
from tests.processes import Process, run_python
from tests.runs import TORCHRUN, options, picture_folder

WORLD = World(0, 1, torch.device("cpu"))

TWO_PROCESSES = """
import sys
import torch
from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import open_together
from mae_curriculum.distributed import Agreement, connect


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail(): raise Unpicklable("this", "that")


with connect() as world:
    rank = world.rank
    assert world.gather(rank) == [0, 1]
    assert world.sum(torch.tensor(float(rank + 1))).item() == 3
    assert world.any(rank == 1) and not world.any(False)
    assert world.on_main(lambda: rank) == 0
    assert world.gather_rows(torch.full((rank + 1, 2), rank)).tolist() == [[0, 0], [1, 1], [1, 1]]
    tensor = torch.tensor([float(rank)])
    world.broadcast_([tensor])
    assert tensor.item() == 0
    agreement = Agreement(world)
    votes = [agreement(step == 1 and rank == 1, 5 - rank) for step in range(3)]
    assert votes == [[0, 5], [1, 5], [0, 5]], votes
    with connect() as inner:  # the group that is there is used, and left as it is
        assert (inner.rank, inner.world_size) == (rank, 2)
    assert world.gather(rank) == [0, 1]
    try:
        world.on_main(fail)
    except Exception as error:
        assert "this and that" in str(error)
    else:
        raise SystemExit("no exception")
    for kind in ("same", "fewer", "renamed", "content", "missing"):
        try:
            open_together(DataConfig(source=f"{sys.argv[1]}/{kind}/{rank}"), world)
        except ConfigError as error:
            sys.stdout.write(f"{kind} {error}\\n")
print("done")
"""


def two_hosts(folder: Path) -> None:
    """Write what each of two ranks sees, for several ways in which that may differ."""
    for kind in ("same", "fewer", "renamed", "content", "missing"):
        for rank in "01":
            picture_folder(folder / kind / rank, classes=2, count=16)
    (folder / "fewer" / "1" / "class0" / "0000.png").unlink()
    first = folder / "renamed" / "1" / "class0" / "0000.png"
    first.rename(first.with_stem("00001"))
    Image.new("RGB", (30, 30)).save(folder / "content" / "1" / "class0" / "0000.png")
    shutil.rmtree(folder / "missing" / "1")


def test_two_processes_exchange_values_votes_failures_and_what_they_see(tmp_path: Path) -> None:
    two_hosts(tmp_path)
    done = run_python([*TORCHRUN, "--no-python", "--", sys.executable, "-c", TWO_PROCESSES, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
    told = {line.split()[0]: line for line in done.stdout.splitlines() if " data.source: " in line}
    assert told.keys() == {"fewer", "renamed", "content", "missing"}  # both ranks, the same words
    assert done.stdout.count("rank 0 on") == 8
    assert "sees 16 images" in told["fewer"]
    assert "sees 15 images" in told["fewer"]
    assert "/missing/1' is neither a folder nor a .tar, .npy or .parquet file" in told["missing"]
    assert all(f"rank 1 on {socket.gethostname()} sees" in line for line in told.values())


def test_a_process_that_waits_for_the_others_says_so_within_ten_seconds_and_ctrl_c_ends_it() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    process = Process("mae_curriculum", "pretrain", *options(Path("unused")), **place)
    start_time = time.monotonic()
    line = ""
    while "waits" not in line:
        line = process.stderr.readline()
        assert process.poll() is None
        assert time.monotonic() - start_time < 15
        time.sleep(0.05)
    assert "rank 0 waits for all 2 processes to start" in line
    os.kill(process.pid, signal.SIGINT)
    process.communicate(10)
    assert process.returncode == -signal.SIGINT


def test_alone_every_exchange_returns_its_input() -> None:
    assert WORLD.gather(3) == [3]
    assert WORLD.any(True)
    assert WORLD.on_main(lambda: 5) == 5
    assert WORLD.sum(torch.tensor(2.0)) == 2
    assert Agreement(WORLD)(True)


def test_alone_an_exception_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        WORLD.on_main(lambda: 1 // 0)
    assert len(caught.traceback) > 2


def test_a_process_started_alone_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with connect() as world:
        assert (world.rank, world.world_size, world.is_main) == (0, 1, True)


def test_an_exception_that_does_not_pickle_arrives_as_its_text() -> None:
    class LocalError(Exception):
        pass

    assert str(picklable(LocalError("no space"))) == "LocalError: no space"
    assert isinstance(picklable(KeyError("a")), KeyError)

"""Start a real SLURM cluster of two nodes on this machine, in its own folder: controller, accounting, preemption.

It needs root and Debian's packages slurm-wlm, munge, slurmdbd and mariadb-server. Everything it starts is stopped at
the end, and nothing that an earlier cluster left behind disturbs it: sockets, ports and data are its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "sbatch", "sacctmgr")

_SLURM = """
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
MpiDefault=none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
AuthInfo=cred_expire=5,socket={folder}/munge.socket
MinJobAge=3600
MessageTimeout=60
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=10000
PartitionName=low Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[3]}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
"""

_SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={ports[3]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[4]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def why_no_cluster() -> str | None:
    """Return why a cluster cannot be started here, or None if it can."""
    if os.geteuid() != 0:
        return "starting a SLURM cluster needs root"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"SLURM is not installed: {', '.join(missing)} missing"
    return None


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    environment: dict[str, str]
    """Environment in which SLURM's commands find it."""
    nodes: dict[str, subprocess.Popen[bytes]]
    """The daemon of each node."""

    def ask(self, *command: object) -> str:
        """Run one of SLURM's commands and return its output."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.environment, text=True, capture_output=True, check=True).stdout

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, also after it was killed."""
        self.nodes[node] = _start(ExitStack(), ["slurmd", "-D", "-N", node], self.environment)

    def end(self) -> None:
        """Stop the daemons of the nodes."""
        for daemon in self.nodes.values():
            _end(daemon)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node, as a power cut would; the node's tasks stay for the test to end."""
        self.nodes[node].kill()
        self.nodes[node].wait()


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster and stop it at the end."""
    ports = _free_ports(5)
    (folder / "state").mkdir(parents=True)
    conf, dbd = folder / "slurm.conf", folder / "slurmdbd.conf"
    conf.write_text(_SLURM.format(folder=folder, ports=ports))
    dbd.write_text(_SLURMDBD.format(folder=folder, ports=ports))
    dbd.chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": _path()}
    with ExitStack() as stack:
        _start_munge(stack, folder)
        _start_database(stack, folder, ports[4])
        _start(stack, ["slurmdbd", "-D"], environment)
        _wait(lambda: _listens(ports[3]), "slurmdbd")
        _add_to_accounts(environment)
        _start(stack, ["slurmctld", "-D", "-c", "-f", conf], environment)
        stack.callback(_end_steps, conf)
        cluster = Cluster(environment, {})
        stack.callback(cluster.end)
        for node in ("node1", "node2"):
            cluster.start_node(node)
        _wait(lambda: _idle_nodes(environment) == 2, "two idle nodes")
        yield cluster
        words = ["scancel", "--full", "--signal=KILL", "--user=root"]
        subprocess.run(words, env=environment, check=False, capture_output=True)
        time.sleep(1)


def _start_munge(stack: ExitStack, folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    own = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    # --force: the folder may be writable by others, or hold files of a cluster that was killed
    socket_path = folder / "munge.socket"
    _start(stack, ["munged", "--foreground", "--force", f"--socket={socket_path}", *own], dict(os.environ))
    _wait(socket_path.is_socket, "munged")


def _start_database(stack: ExitStack, folder: Path, port: int) -> None:
    # folders that the user mysql can reach; in memory flushing takes no time
    place = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 2**28 else "/tmp"
    data = Path(tempfile.mkdtemp(prefix="slurm-test-db-", dir=place))
    stack.callback(shutil.rmtree, data, ignore_errors=True)
    shutil.chown(data, "mysql", "mysql")
    subprocess.run(["mariadb-install-db", "--user=mysql", f"--datadir={data}/db"], check=True, capture_output=True)
    options = ["--no-defaults", "--user=mysql", f"--datadir={data}/db", f"--socket={data}/db.sock", f"--port={port}"]
    sizes = ["--bind-address=127.0.0.1", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
    unsafe = ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0"]  # faster; the data may be lost
    _start(stack, ["mariadbd", *options, *sizes, *unsafe], dict(os.environ))
    client = ["mariadb", "--no-defaults", f"--socket={data}/db.sock", "-u", "root", "-e"]
    statements = "create database slurm_acct_db;" + "".join(
        f"create user slurm@'{host}' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'{host}';"
        for host in ("127.0.0.1", "localhost")
    )
    _wait(lambda: subprocess.run([*client, "select 1"], capture_output=True, check=False).returncode == 0, "mariadbd")
    subprocess.run([*client, statements], check=True, capture_output=True)


def _add_to_accounts(environment: dict[str, str]) -> None:
    """Add the cluster to accounting; its daemon listens before it can answer, so repeat until it does."""
    answers: list[str] = []

    def is_known() -> bool:
        for words in (["-i", "add", "cluster", "local"], ["-n", "list", "cluster", "format=cluster"]):
            done = subprocess.run(["sacctmgr", *words], env=environment, text=True, capture_output=True, check=False)
            answers.append(f"{done.returncode} {done.stdout.strip()} {done.stderr.strip()}")
        return done.returncode == 0 and "local" in done.stdout

    try:
        _wait(is_known, "cluster in accounting")
    except TimeoutError as error:
        log = Path(environment["SLURM_CONF"]).with_name("slurmdbd.log")
        raise TimeoutError("\n".join([str(error), *answers[-2:], log.read_text()[-2000:]])) from None


def _start(stack: ExitStack, command: list[object], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**environment, "PATH": _path()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # at once: nothing that it would save is needed again
    process.wait()


def _end_steps(conf: Path) -> None:
    """Kill the supervisors of this cluster's jobs that have outlived the daemon of their node."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(conf).encode() in (process / "environ").read_bytes()
            if ours and (process / "comm").read_text().strip() == "slurmstepd":
                os.kill(int(process.name), signal.SIGKILL)


def _wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {seconds:g} s")
        time.sleep(0.1)


def _idle_nodes(environment: dict[str, str]) -> int:
    idle = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N"],
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    return len(idle.stdout.split())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    """Find consecutive free ports, as SLURM wants them for its nodes."""
    for start in range(17000, 27000, count):
        if not any(_listens(port) for port in range(start, start + count)):
            return list(range(start, start + count))
    raise OSError("no free ports")


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"

"""Write the report: one HTML page about runs."""

from mae_curriculum.commands.config import ReportConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.files import write_atomic
from mae_curriculum.report.html import render
from mae_curriculum.report.runs import read_runs, readable


def report(config: ReportConfig) -> int:
    """Write the page; returns the exit code."""
    paths = config.runs if config.baseline is None else (config.baseline, *config.runs)
    runs = read_runs(paths)
    page = render(runs, baseline=None if config.baseline is None else runs[0])
    out = config.out or config.runs[0] / "report.html"
    try:
        write_atomic(out, page.encode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{readable(out)} cannot be written ({error.strerror}); choose another --out") from error
    print(f"{readable(out)}: {len(page) / 1e6:.1f} MB, runs: {len(runs)}")
    return 0

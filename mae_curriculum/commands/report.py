"""Write the report: one HTML page about runs; or reference curves."""

from mae_curriculum.commands.config import ReportConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.files import write_atomic
from mae_curriculum.reference import write_reference
from mae_curriculum.report.html import render
from mae_curriculum.report.runs import read_runs
from mae_curriculum.terminal import printable


def report(config: ReportConfig) -> int:
    """Write the page, or the reference curves; returns the exit code."""
    if config.reference is not None:
        runs = read_runs(config.runs)
        write_reference(config.reference, runs)
        print(f"{printable(config.reference)}: runs: {len(runs)}")
        return 0
    paths = config.runs if config.baseline is None else (config.baseline, *config.runs)
    runs = read_runs(paths)
    if config.baseline is not None and runs[0].folder.path != config.baseline.resolve():
        raise ConfigError(f"baseline: {config.baseline} is not a run that can be read")
    page = render(runs, baseline=None if config.baseline is None else runs[0])
    out = config.out or config.runs[0] / "report.html"
    try:
        write_atomic(out, page.encode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    print(f"{printable(out)}: {len(page) / 1e6:.1f} MB, runs: {len(runs)}")
    return 0

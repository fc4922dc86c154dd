"""`diffopt report`: write the page of a run or of a sweep again."""

from pathlib import Path

from diffopt.cli.arguments import Parser
from diffopt.errors import ConfigError
from diffopt.report import run_page
from diffopt.report.run_directory import RUN, Run

SWEEP = "multirun.yaml"


def parser() -> Parser:
    made = Parser("diffopt report", description="Write the page of a run or of a sweep again.")
    made.add_argument("directory", type=Path, help="outputs/runs/NAME/DATE or outputs/sweeps/NAME/DATE")
    made.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="METRIC=AMOUNT",
        help="of a sweep: name the smallest and the fastest job that keeps it, as clip=-0.5%% for the change from the "
        "reference that is borne, or psnr=40 for the value itself; may be given several times",
    )
    made.add_argument("--inline", action="store_true", help="small copies of the pictures in the page, to pass it on alone")
    return made


def command(arguments: list[str]) -> None:
    """`diffopt report DIRECTORY`. Raises ConfigError for a directory that is neither a run's nor a sweep's."""
    given = parser().parse_args(arguments)
    directory: Path = given.directory
    if (directory / RUN).is_file():
        if given.floor:
            raise ConfigError(f"floor: chooses among the jobs of a sweep (got the run {str(directory)!r}); drop it")
        if lost := Run(directory).lost:
            raise ConfigError(
                f"report: the store has no {', '.join(lost)} of this run any more (got {str(directory)!r}); "
                "its page is left as it is, the recipe makes a new one"
            )
        written = run_page.write(directory, given.inline)
        print("\n".join([*run_page.summary(directory), f"report  {written}"]))
    elif (directory / SWEEP).is_file() or any(directory.glob(f"*/{RUN}")):
        from diffopt.quality.floor import floors
        from diffopt.sweep import page
        from diffopt.sweep.findings import Findings

        found = Findings(directory, floors(given.floor) or page.stated(directory))
        found.check()
        for row in found.rows:
            if row.run and not row.run.lost:
                run_page.write(row.run.directory, given.inline)
        written = page.write(found)
        print("\n".join([*page.summary(found), f"report  {written}"]))
    else:
        what = f"has no {RUN} and no {SWEEP}" if directory.is_dir() else "is not a directory"
        raise ConfigError(
            f"report: {what} (got {str(directory)!r}); name a run or a sweep under outputs/runs or outputs/sweeps"
        )

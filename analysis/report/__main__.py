"""`python -m analysis.report`: run a profile's notebooks and gather what they wrote into one page.

Results go to `<output>/<job>/`, the page to `<output>/index.html`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.report.page import write_page
from analysis.report.parameters import (
    OUTPUT_DIR,
    declared_parameters,
    parameter_problems,
    parse_value,
    unknown_name_message,
)
from analysis.report.profiles import NOTEBOOKS, profile_jobs, profile_name
from analysis.report.progress import NotebookProgress
from analysis.report.runs import NotebookJob, count_cells, prepare_shared, run_notebook
from core.errors import GroundingError


def select_jobs(jobs: Sequence[NotebookJob], names: Sequence[str]) -> list[NotebookJob]:
    """The named jobs in the profile's order; all of them when no name is given.

    Raises:
        GroundingError: a name that is not in the profile.
    """
    known = [job.name for job in jobs]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise GroundingError(f"no notebook {', '.join(unknown)} in this profile; it has: {', '.join(known)}")
    return [job for job in jobs if not names or job.name in names]


def override_parameters(jobs: Sequence[NotebookJob], words: Sequence[tuple[str, str]]) -> list[NotebookJob]:
    """The jobs with `name value` words from the command line put into every job that declares the name.

    Raises:
        GroundingError: no job declares the name, or a value (from the files or the words) does not fit; every problem
            is named in one message.
    """
    declared = {job.name: declared_parameters(job.notebook) for job in jobs}
    settable = sorted({name for parameters in declared.values() for name in parameters} - {OUTPUT_DIR})
    problems = [
        unknown_name_message(name, settable, "every notebook of this run" if len(jobs) > 1 else jobs[0].name)
        for name, _ in words
        if not any(name in parameters for parameters in declared.values())
    ]
    changed = []
    for job in jobs:
        own = declared[job.name]
        values = {name: parse_value(text, own[name].annotation) for name, text in words if name in own}
        job = replace(job, parameters={**job.parameters, **values})
        problems += parameter_problems(job.notebook, job.parameters, name=job.name)
        changed.append(job)
    if problems:
        raise GroundingError("\n".join(problems))
    return changed


def run_report(
    jobs: Sequence[NotebookJob],
    output: Path,
    *,
    profile: str,
    listed: Sequence[NotebookJob] = (),
    **run_options: Any,
) -> Mapping[str, str]:
    """Run the jobs one after another and keep `index.html` up to date; returns job name -> status.

    Args:
        listed: the jobs that the page shows (the whole profile); the jobs run when empty.
        run_options: `force`, `fresh` and `timeout` of `run_notebook`.
    """
    output.mkdir(parents=True, exist_ok=True)
    prepare_shared(jobs, output, fresh=run_options.get("fresh", False))
    shown = {job.name: job for job in (*listed, *jobs)}
    statuses = {}
    with NotebookProgress({job.name: count_cells(job) for job in jobs}) as progress:
        for job in jobs:
            statuses[job.name] = run_notebook(job, progress=progress, **run_options).status
            write_page(output, list(shown.values()), profile=profile)
    return statuses


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--profile",
        default="embedded",
        help="profile of notebooks/parameters/ (default: embedded), or a YAML file of your own",
    )
    parser.add_argument("--output", type=Path, help="where results go (default: reports/<profile>)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="run these jobs of the profile, by the names of its files"
    )
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
                        help="set a parameter in every notebook that declares it; may be repeated")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="run finished notebooks again; records are kept")
    parser.add_argument("--fresh", action="store_true", help="delete earlier results, records included, and run again")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="limit for one cell (default: none)")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="directory of notebooks and parameters/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when every notebook finished, 1 when one failed, 2 when nothing could be started."""
    options = _arguments(argv)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    name = profile_name(options.profile)
    output = options.output or Path("reports") / name
    try:
        listed = profile_jobs(options.profile, output, notebooks=options.notebooks)
        jobs = override_parameters(select_jobs(listed, options.only), [tuple(pair) for pair in options.parameters])
        statuses = run_report(
            jobs,
            output,
            profile=name,
            listed=listed,
            force=options.force,
            fresh=options.fresh,
            timeout=options.timeout,
        )
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [name for name, status in statuses.items() if status != "finished"]
    print(f"{len(statuses) - len(failed)} of {len(statuses)} notebooks finished -> {output / 'index.html'}")
    if failed:
        print(f"failed: {', '.join(failed)}; the page and {output}/<name>/ say why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

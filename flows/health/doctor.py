"""What fails silently, looked for: each fault with its remedy.

python -m flows.health.doctor
"""

from collections.abc import Callable, Iterator

import typer

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.health.dvc_remote import remote
from flows.health.finding import Finding
from flows.health.machine import disk, home, packages
from flows.health.mlflow_server import aliases, registry, webhook
from flows.health.prefect_server import prefect, schedules
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError

__all__ = ["Finding", "command", "run_checks"]


def run_checks(settings: Settings) -> list[Finding]:
    """Look at everything, one after the other; what cannot be looked at is a finding too.

    Args:
        settings: of the machine.
    """
    looks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        packages, home, disk, registry, aliases, webhook, prefect, schedules, remote,
    )  # fmt: skip
    if not settings.home.exists and settings.environment.mlflow_tracking_uri is None:
        looks = (packages, home, prefect)  # the others would look into the home
    findings: list[Finding] = []
    for look in looks:
        try:
            findings += look(settings)
        except Exception as error:
            findings.append(Finding(look.__name__, "error", f"could not be looked at: {type(error).__name__}: {error}"))
    return findings


@cli_command(home="read")
def command() -> None:
    """Look for what fails silently, each with its remedy; exit code 1 when there is a fault.

    Example: microseg doctor
    """
    marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}
    findings = run_checks(load_settings())
    for finding in findings:
        console.print(f"{marks[finding.level]} [bold]{finding.subject}[/]:", end=" ")
        console.print(finding.sentence, markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"    → {finding.remedy}", markup=False, soft_wrap=True)
    faults = sum(finding.level == "error" for finding in findings)
    if faults:
        raise MicrosegError(f"{faults} of {len(findings)} things looked at are faults.")


if __name__ == "__main__":
    typer.run(command)

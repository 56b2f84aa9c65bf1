"""Checks for faults that are easily missed, each with what to do about it.

microseg doctor
"""

from collections.abc import Callable, Iterator

import typer

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.health.machine import Finding, check_disk, check_dvc_remote, check_home, check_packages, check_sharing
from flows.health.runs import check_notifications, check_onboardings, check_queue
from flows.health.servers import check_aliases, check_mlflow, check_prefect, check_schedules, check_webhook
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError
from microseg.escaping import mask_secrets

__all__ = ["command", "run_checks"]


def run_checks(settings: Settings) -> list[Finding]:
    """Run all checks; a check that fails itself is a finding too.

    Args:
        settings: Settings of this machine.
    """
    checks: dict[str, Callable[[Settings], Iterator[Finding]]] = {
        "packages": check_packages,
        "home": check_home,
        "disk": check_disk,
        "MLflow": check_mlflow,
        "aliases": check_aliases,
        "webhook": check_webhook,
        "Prefect": check_prefect,
        "schedules": check_schedules,
        "queue": check_queue,
        "onboarding": check_onboardings,
        "notify": check_notifications,
        "DVC remote": check_dvc_remote,
        "sharing": check_sharing,
    }
    if not settings.home.exists and settings.environment.mlflow_tracking_uri is None:
        for name in (
            "disk",
            "MLflow",
            "aliases",
            "webhook",
            "onboarding",
            "DVC remote",
            "sharing",
        ):  # these need the home
            del checks[name]
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check(settings)
        except Exception as error:
            findings.append(
                Finding(name, "error", mask_secrets(f"could not be checked: {type(error).__name__}: {error}"))
            )
    return findings


@cli_command(home="read")
def command() -> None:
    """Check packages, home, servers and deployments, and say how to fix what is wrong.

    The exit code is 1 if there is an error.

    Example: microseg doctor
    """
    marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}
    findings = run_checks(load_settings())
    for finding in findings:
        console.print(f"{marks[finding.level]} [bold]{finding.check}[/]:", end=" ")
        console.print(finding.message, markup=False, soft_wrap=True)
        if finding.action:
            console.print(f"    → {finding.action}", markup=False, soft_wrap=True)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise MicrosegError(f"{errors} of {len(findings)} checks found an error.")


if __name__ == "__main__":
    typer.run(command)

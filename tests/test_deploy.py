"""The files in deploy/: what they name exists."""

import re
from configparser import ConfigParser
from pathlib import Path

import yaml

from flows.cli.main import COMMANDS
from microseg.config.environment import Environment

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def names(file: Path) -> set[str]:
    """Names of the variables in an example of an environment, also of those that are commented out."""
    return set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", file.read_text(), re.MULTILINE))


def test_the_example_has_every_variable_that_compose_requires() -> None:
    required = set[str]()
    for file in (ROOT / "mlflow" / "compose.yaml", DEPLOY / "compose.yaml"):
        required |= set(re.findall(r"\$\{(\w+):\?", file.read_text()))
    assert required <= names(DEPLOY / ".env.example")


def test_compose_runs_the_service_on_servers_that_it_waits_for() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    services |= yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())["services"]
    microseg = services["microseg"]
    command = microseg["command"].split()
    assert command[0] == "microseg"
    assert command[1] in COMMANDS
    assert all(services[name].get("healthcheck") for name in microseg["depends_on"])
    for variable, port in (("PREFECT_API_URL", 4200), ("MLFLOW_TRACKING_URI", 5000)):
        host = re.match(r"http://(\w+):", microseg["environment"][variable])[1]  # type: ignore[index]
        assert f"--port {port}" in services[host]["command"]
        assert host in microseg["depends_on"]
    assert (ROOT / services["prefect"]["build"]["dockerfile"]).is_file()
    fields = {name.upper() for name in Environment.model_fields}
    own = {name for name in microseg["environment"] if name.startswith("MICROSEG_") and "__" not in name}
    assert own - {"MICROSEG_NOTIFY"} <= fields


def test_systemd_starts_a_command_that_reports_that_it_is_ready_and_stops_in_time() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "microseg.service")
    service = unit["Service"]
    assert service["ExecStart"].split("/")[-1] == "microseg serve"
    assert (service["Type"], service["Restart"], service["KillMode"]) == ("notify", "always", "mixed")
    assert int(service["TimeoutStopSec"]) > 30
    fields = {name.upper() for name in Environment.model_fields} | {"MICROSEG_NOTIFY", "PREFECT_API_URL"}
    known = fields | {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert names(DEPLOY / "environment.example") <= known

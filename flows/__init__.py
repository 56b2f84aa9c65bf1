"""The flows: what runs, in which order, and when. They orchestrate; the library ``microseg`` computes."""

import os
from pathlib import Path

from microseg.config.environment import Environment

# Prefect reads its environment when it is imported, and wants its home to be there, so this comes first.
os.environ.setdefault("PREFECT_HOME", str(Environment().home.prefect))
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # a busy machine needs more than 20 s
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

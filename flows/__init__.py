"""The flows: what runs, in which order, and when. They orchestrate; the library ``microseg`` computes."""

import logging
import os
import warnings

from microseg.config.environment import Environment
from microseg.escaping import mask_log_records
from microseg.limits import bound_log

# Prefect reads its environment when it is imported, and creates its home where the parent folder exists. That folder is
# created together with microseg's home, so importing creates nothing.
os.environ.setdefault("PREFECT_HOME", str(Environment().home.prefect))
warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # a busy machine needs more than 20 s
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

mask_log_records()
bound_log("tifffile", "PIL.Image", "PIL.TiffImagePlugin")

if os.environ.get("PREFECT__FLOW_RUN_ID"):  # a process that Prefect started for one run: log lines appear on its page
    from prefect.logging.handlers import APILogHandler

    for _name in ("flows", "microseg"):
        logging.getLogger(_name).addHandler(APILogHandler())
        logging.getLogger(_name).setLevel(logging.INFO)

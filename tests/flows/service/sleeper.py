"""A child process with a child of its own; it writes both process IDs to a file, and reports that it is ready."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flows.service.processes import report_ready

if __name__ == "__main__":
    own = subprocess.Popen(["sleep", "300"])
    (Path(sys.argv[1]) / "pids").write_text(f"{os.getpid()} {own.pid}")
    report_ready()
    time.sleep(300)

"""Refuses a release unless the tag, the version and the changelog's newest, dated entry agree.

python .github/release_check.py v0.2.0
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """What does not agree; empty if the release may be published.

    Args:
        tag: Name of the Git tag.
        root: Folder with ``pyproject.toml``, ``CITATION.cff`` and ``CHANGELOG.md``.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        found.append(f"pyproject.toml: expected a version to publish, got {version}")
    if tag != f"v{version}":
        found.append(f"expected the tag v{version}, as in pyproject.toml, got {tag}")
    entry = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    newest = entry[1] if entry else "nothing"
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d{{2}}-\d{{2}}\)", newest):
        found.append(f"CHANGELOG.md: expected the newest entry '## {version} (YYYY-MM-DD)', got {newest}")
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff: expected version {version}, got {cited[1] if cited else 'none'}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults(sys.argv[1])) or 0)

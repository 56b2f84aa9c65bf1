"""Write the part of the study's results that the decision page of a candidate shows.

    python -m benchmarks.evidence.page_study var/evidence/results.json

The file is part of the package: ``microseg/report/study.json``. Degraded networks are left out: a candidate is the
result of an adaptation.
"""

import json
from pathlib import Path

from benchmarks.adaptation.methods import SOURCE_ONLY
from benchmarks.results import argument_parser
from microseg.files import write_text_file
from microseg.report.study import STUDY_FILE

_LABEL_FREE = (
    "stain_explained_variance",
    "augmentation_consistency",
    "forward_validation",
    "foreground_share",
    "expected_foreground_share",
    "entropy",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, write the file."""
    parser = argument_parser("benchmarks.evidence.page_study", __doc__)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of benchmarks.evidence, or several")
    parser.add_argument("--out", type=Path, default=STUDY_FILE)
    args = parser.parse_args(arguments)
    rows = [row for file in args.results for row in json.loads(file.read_text()) if not row["degraded"]]
    networks = [
        {
            "task": row["task"],
            "seed": row["seed"],
            "first": row["network"] == SOURCE_ONLY,
            "source_dice": round(row["source_dice"], 4),
            "target_dice": round(row["target_dice"], 4),
            "label_free": {
                name: round(row["label_free"][name], 4) for name in _LABEL_FREE if name in row["label_free"]
            },
        }
        for row in rows
    ]
    write_text_file(args.out, "[\n" + ",\n".join(json.dumps(it) for it in networks) + "\n]\n")


if __name__ == "__main__":
    main()

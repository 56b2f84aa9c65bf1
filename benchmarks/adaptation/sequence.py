"""Sequential adaptation: does a segmenter that is adapted to a third lab remain adapted to the second?

    python -m benchmarks.adaptation.sequence --seeds 0 --out var/sequence

Three labs are generated: lab_a (H&E, labelled), lab_b (DAB-H) and lab_c (H&E of a paler stain, another scanner, finer
glands), both without labels. The first segmenter is adapted to lab_b, then to lab_c as `microseg adapt` does it, which
includes the earlier target labs; to lab_c alone, to measure the loss without that; and to both together. Finished
results are kept: the same command resumes an interrupted benchmark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmarks.adaptation.apart import train_apart
from benchmarks.adaptation.methods import DEFAULT
from benchmarks.adaptation.synthetic import PALE_AMOUNTS
from benchmarks.adaptation.tasks import as_dataset
from benchmarks.results import ResultRows, Row, argument_parser, console_table, markdown_table
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import held_out_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.synthetic.labs import LAB_A, LAB_B, LabProfile, generate_lab
from microseg.synthetic.scanner import Scanner
from microseg.synthetic.tissue import Tissue

__all__ = ["LAB_C", "STEPS", "LabSequence", "Step"]

LAB_C: LabProfile = replace(
    LAB_A,
    name="lab_c",
    amounts=PALE_AMOUNTS,
    scanner=Scanner(white=(0.97, 0.88, 0.90), overlap=0.15, gamma=0.9, blur=1.1, photons=1200.0, jpeg_quality=70),
    tissue=Tissue(gland_diameter=78.0, nucleus_spacing=6.5),
)
_LOOKS = (LAB_A, LAB_B, LAB_C)
_MINUTES = 3.0


@dataclass(frozen=True)
class Step:
    """One adaptation of the sequence.

    Attributes:
        name: Name in the table.
        start: Name of the step whose network it starts from.
        targets: Target labs.
    """

    name: str
    start: str
    targets: tuple[str, ...]


FIRST = "first"
STEPS = (
    Step("to lab_b", FIRST, ("lab_b",)),
    Step("then to lab_c, lab_b again", "to lab_b", ("lab_b", "lab_c")),
    Step("then to lab_c alone", "to lab_b", ("lab_c",)),
    Step("to both together", FIRST, ("lab_b", "lab_c")),
)


@dataclass
class LabSequence(ResultRows):
    """The sequence, with its labs and networks in a folder.

    Attributes:
        minutes: Time limit of each adaptation.
        images: Images of each lab; the held-out test set has a quarter of that number in addition.
        changes: Values that override parameters.
    """

    minutes: float = _MINUTES
    images: int = 32
    changes: tuple[str, ...] = ()

    def run(self, seeds: Sequence[int]) -> Iterator[Row]:
        """Compute the missing rows; yields all rows in order."""
        for seed in seeds:
            labs = self._labs(seed)
            networks = {FIRST: self._train(labs, seed, Step(FIRST, "", ()), None)}
            yield self._row(labs, seed, FIRST, networks[FIRST])
            for step in STEPS:
                networks[step.name] = self._train(labs, seed, step, networks[step.start])
                yield self._row(labs, seed, step.name, networks[step.name])

    def _place(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def _labs(self, seed: int) -> dict[str, Path]:
        """Datasets of the labs by name, generated where missing."""
        datasets = {}
        for number, look in enumerate(_LOOKS):
            incoming = self._place(seed) / "generated" / look.name
            if not incoming.exists():
                kept = self.images // 4
                generate_lab(
                    incoming, look, images=self.images, labelled=number == 0, test_images=kept, seed=3 * seed + number
                )
            datasets[look.name] = as_dataset(incoming, self._place(seed)).folder
        return datasets

    def _train(self, labs: dict[str, Path], seed: int, step: Step, start: Path | None) -> Path:
        job: dict[str, Any] = {
            "task_folder": str(self._place(seed).resolve()),
            "changes": list(self.changes),
            "source": str(labs[LAB_A.name]),
            "targets": [str(labs[name]) for name in step.targets],
            "seed": seed,
            "steps": 1_000_000,  # the time limit ends it
            "kind": "adapt" if start else "train",
            "method": DEFAULT,
            "minutes": self.minutes if start else None,
            "start": str(start) if start else None,
        }
        return train_apart(job, self._place(seed) / step.name.replace(" ", "_").replace(",", ""))

    def _row(self, labs: dict[str, Path], seed: int, step: str, network: Path) -> Row:
        known = next((row for row in self.rows if (row["step"], row["seed"]) == (step, seed)), None)
        if known is None:
            engine = Engine(load_network(network))
            known = {"step": step, "seed": seed, "minutes": self.minutes}
            for name in labs:
                incoming = self._place(seed) / "generated" / name
                references = held_out_references(incoming, read_lab_metadata(incoming))
                known[name] = mean_scores(score(engine.probabilities, references, engine.classes))["dice"]
            self.add(known)
        return known


def _summary(rows: Sequence[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    lines = []
    for step, group in table.groupby("step", sort=False):
        means = {name: f"{group[name].mean():.3f}" for name in (look.name for look in _LOOKS)}
        lines.append({"step": step, "seeds": len(group), **means})
    return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write it."""
    parser = argument_parser("benchmarks.adaptation.sequence", __doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--minutes", type=float, default=_MINUTES, help=f"time limit of each adaptation (default {_MINUTES:g})"
    )
    parser.add_argument("--images", type=int, default=32, help="images of each lab (default 32)")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/sequence"))
    parser.add_argument("--set", nargs="+", default=[], metavar="section.name=value", help="parameters to override")
    chosen = parser.parse_args(arguments)
    console = Console()
    sequence = LabSequence(chosen.out.absolute(), chosen.minutes, chosen.images, tuple(chosen.set))
    for row in sequence.run(chosen.seeds):
        dice = ", ".join(f"{look.name} {row[look.name]:.3f}" for look in _LOOKS)
        console.print(f"seed {row['seed']}, {row['step']}: {dice}")
    summary = _summary(sequence.rows)
    console.print(
        console_table(summary, f"{chosen.minutes:g} minutes of adaptation each; mean Dice on held-out test images")
    )
    (sequence.out / "table.md").write_text(markdown_table(summary))
    console.print(f"{sequence.file}\n{sequence.out / 'table.md'}")


if __name__ == "__main__":
    main()

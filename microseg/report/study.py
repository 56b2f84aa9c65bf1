"""Where a candidate lies among the models of the study of label-free criteria; see docs/benchmarks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from microseg.config.params import GateSettings
from microseg.parsing import parse_json
from microseg.registry.decision import Verdict
from microseg.registry.evidence import Evidence
from microseg.registry.gate import decide

__all__ = ["BETTER", "STUDY_FILE", "WORSE", "StudyModel", "change", "read_study"]

STUDY_FILE: Final = Path(__file__).parent / "study.json"
"""Written by ``python -m benchmarks.evidence.page_study``."""

WORSE, BETTER = -0.02, 0.05
"""Gains of Dice below which a model of the study counts as worse than the one before, and above which as better."""


@dataclass(frozen=True)
class StudyModel:
    """A model of the study, as a candidate to replace the one that it was adapted from.

    Args:
        verdict: Of the gate, with its default settings.
        gain: Gain of Dice on the target lab's masks, which the gate did not know, -1..1.
        changes: Change of each label-free measurement, by its name.
    """

    verdict: Verdict
    gain: float
    changes: Mapping[str, float]

    @property
    def outcome(self) -> str:
        """``better``, ``worse`` or ``same``: what the masks say."""
        return "better" if self.gain > BETTER else "worse" if self.gain < WORSE else "same"


@cache
def read_study() -> tuple[StudyModel, ...]:
    """Read the study, and let the gate decide on each of its models again."""
    networks: list[dict[str, Any]] = parse_json(STUDY_FILE.read_bytes())
    before = {(it["task"], it["seed"]): it for it in networks if it["first"]}
    policy, models = GateSettings(), []
    for new in networks:
        old = before[new["task"], new["seed"]]
        if new is old:
            continue
        names = new["label_free"].keys() & old["label_free"].keys()
        models.append(
            StudyModel(
                decide(_evidence(new), _evidence(old), policy).verdict,
                new["target_dice"] - old["target_dice"],
                {name: change(name, new["label_free"][name], old["label_free"][name]) for name in names},
            )
        )
    return tuple(models)


def change(name: str, new: float, old: float) -> float:
    """The change of a measurement; of an area, the factor as a power of two."""
    if name == "foreground_share":
        return math.log2((new + 1e-4) / (old + 1e-4))
    return new - old


def _evidence(network: Mapping[str, Any]) -> Evidence:
    return Evidence({"source": network["source_dice"]}, label_free=network["label_free"])

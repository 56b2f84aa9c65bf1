"""A note above the model card of a version: what a person who looks at its page has to know first."""

import re
from typing import TYPE_CHECKING, Final

from microseg.registry.version import MODEL_NAME, ModelVersion

if TYPE_CHECKING:  # MLflow takes seconds
    from microseg.registry.connection import Connection

__all__ = ["AGAINST_GATE", "BY_A_PERSON", "IGNORED", "OUTDATED", "REVERTED", "set_note"]

REVERTED: Final = "NOT IN PRODUCTION"
IGNORED: Final = "ALIAS NOT KNOWN"
OUTDATED: Final = "OUTDATED"
AGAINST_GATE: Final = "PROMOTED AGAINST THE GATE"
BY_A_PERSON: Final = "PROMOTED BY A PERSON, THE GATE COULD NOT TELL"

_NOTE = re.compile(rf"\A({'|'.join((REVERTED, IGNORED, OUTDATED, AGAINST_GATE, BY_A_PERSON))}): [^\n]*\n\n")


def set_note(connection: "Connection", version: ModelVersion, title: str = "", text: str = "") -> None:
    """Set, replace or remove the note of a version.

    Args:
        connection: The connection to MLflow.
        version: The version, with its description of now.
        title: One of the titles of this module; empty to remove the note.
        text: The note.
    """
    from microseg.registry.model_card import fit_description

    card = _NOTE.sub("", version.description)
    description = fit_description(f"{title}: {' '.join(text.split())}\n\n{card}" if title else card)
    if description != version.description:
        with connection.action("describe a version") as client:
            client.update_model_version(MODEL_NAME, str(version.version), description=description)

"""What params.yaml says of inference reaches the engine."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flows import models
from flows.settings import load_settings
from microseg.errors import SettingsError
from microseg.model import PyramidSegmenter

CHANGES = ("device=cpu", "inference.tile=96", "inference.halo=16", "inference.batch=3")


def test_every_setting_reaches_the_engine(
    tiny_network: Callable[..., PyramidSegmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, version = tiny_network(), SimpleNamespace()
    seen: list[dict[str, Any]] = []

    def engine(given: PyramidSegmenter, **options: Any) -> SimpleNamespace:
        assert given is network
        seen.append(options)
        return SimpleNamespace(parameters={}, weights_sha256="")

    monkeypatch.setattr("flows.models.Engine", engine)
    monkeypatch.setattr("microseg.sdk.segmenter.Engine", engine)
    monkeypatch.setattr("flows.models.fetch_network", lambda *_: network)
    monkeypatch.setattr("flows.models.version_provenance", lambda _: None)
    monkeypatch.setattr("flows.models.open_registry", lambda _: SimpleNamespace(known_images=lambda _: None))
    for compiled in (False, True):
        settings = load_settings((*CHANGES, f"inference.compile={str(compiled).lower()}"))
        models.make_engine(network, settings)
        models.fetch_segmenter(version, settings)  # type: ignore[arg-type]
    expected = {"device": "cpu", "tile": 96, "halo": 16, "batch": 3}
    assert seen == [expected | {"compiled": compiled} for compiled in (False, False, True, True)]


def test_compiling_is_refused_where_there_is_no_cuda(tiny_network: Callable[..., PyramidSegmenter]) -> None:
    with pytest.raises(SettingsError, match=r"set inference.compile to false, or device to cuda"):
        models.make_engine(tiny_network(), load_settings(("device=cpu", "inference.compile=true")))

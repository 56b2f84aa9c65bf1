"""Pages in a real browser: the candidate's page in MLflow, where it is promoted; pages of Prefect.

Needs Chromium and its driver (Debian's packages chromium and chromium-driver: `make test-browser` installs them). The
screenshots go to the folder in MICROSEG_SCREENSHOTS, where one is named.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import ArtifactFilter

from microseg.registry.registry import Registry
from microseg.registry.version import PRODUCTION
from tests.flows.live import DEPLOYMENTS, Servers, connected, ended, runs_of, started, until

selenium = pytest.importorskip("selenium.webdriver")
StaleElementReferenceException = pytest.importorskip("selenium.common").StaleElementReferenceException
ActionChains = pytest.importorskip("selenium.webdriver.common.action_chains").ActionChains
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.server,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def servers(
    params: Path, incoming_labs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """With version 1 in production and version 2, adapted to lab_b, as candidate."""
    schedule = {"segment_cron": "30 4 * * *", "reconcile_minutes": 1000}
    roots = {"allowed_roots": [str(lab.parent) for lab in incoming_labs]}
    with started(tmp_path_factory.mktemp("browser"), params, schedule=schedule, data=roots) as it:
        until(lambda: "Ctrl-C" in it.output.read_text() or it.process.poll() is not None, "the servers' addresses")
        assert it.process.poll() is None, it.output.read_text()
        with connected(it) as client:
            until(lambda: len(client.read_deployments()) == DEPLOYMENTS, "the deployments")
            for flow, parameters in (
                ("ingest", {"folder": str(incoming_labs[0])}),
                ("train", {"labs": ["lab_a"]}),
                ("onboard", {"folder": str(incoming_labs[1])}),
            ):
                deployment = client.read_deployment_by_name(f"{flow}/{flow}")
                run = ended(client, client.create_flow_run_from_deployment(deployment.id, parameters=parameters))
                assert run.state.is_completed(), run.state.message
        yield it


@pytest.fixture
def browser() -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(option)
    options.add_argument("--window-size=1600,2400")
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    driver.implicitly_wait(60)
    yield driver
    driver.quit()


@pytest.fixture
def picture(browser: Any, tmp_path: Path) -> Callable[[str], None]:
    folder = Path(os.environ.get("MICROSEG_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: browser.save_screenshot(str(folder / f"{name}.png"))


def element(browser: Any, css: str, text: str = "") -> Any:
    """The first visible element with a text."""
    found: list[Any] = []

    def look() -> bool:
        with suppress(StaleElementReferenceException):  # the page was rendered again
            found[:] = [
                it for it in browser.find_elements("css selector", css) if it.is_displayed() and text in it.text
            ]
        return bool(found)

    until(look, f"{css} with {text!r}")
    return found[0]


def tab_to(browser: Any, condition: str) -> None:
    """Press the Tab key until a condition on the focused element holds."""
    for _ in range(200):
        if browser.execute_script(f"const it = document.activeElement; return Boolean(it && {condition})"):
            return
        ActionChains(browser).send_keys(Keys.TAB).perform()
    raise AssertionError(f"the Tab key does not lead to an element with {condition}")


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_decision_page_is_used_by_keyboard_inside_mlflow(
    servers: Servers, browser: Any, picture: Callable[[str], None], size: tuple[int, int]
) -> None:
    """From MLflow's page into the frame of the page, without a mouse."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.get(f"{servers.mlflow}/#/models/microseg-segmenter/versions/2")
    page = element(browser, "a", "Decision page").get_attribute("href")
    # MLflow opens its assistant at the first visit; in a narrow window there is no room for the button that closes it
    element(browser, "[data-component-id='mlflow.assistant.chat_panel.close']").click()
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)
    frame = browser.find_element("css selector", "iframe")  # beside a narrow window, until it has the focus
    tab_to(browser, "it.tagName === 'IFRAME'")
    browser.switch_to.frame(frame)
    use_by_keyboard(browser)
    picture(f"7-decision-page-{size[0]}")


def use_by_keyboard(browser: Any) -> None:
    """Jump to the images, hide the outlines, zoom and move, jump to an image of the list."""

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def drawn() -> str:
        panels = "[...document.querySelectorAll('#picture-1 canvas')]"
        return str(browser.execute_script(f"return {panels}.map((it) => it.toDataURL()).join()"))

    def seen() -> bool:
        box = "document.activeElement.getBoundingClientRect()"
        return bool(browser.execute_script(f"const it = {box}; return it.bottom > 0 && it.top < innerHeight"))

    ready = "return document.querySelector('figure.picture').dataset.ready === 'yes'"
    until(lambda: browser.execute_script(ready), "the first image of the decision page")
    tab_to(browser, "it.matches('nav a[href=\"#look\"]')")
    press(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "look"
    before = drawn()
    tab_to(browser, "it.dataset.option === 'outlines'")
    press(Keys.SPACE)
    assert drawn() != before
    press(Keys.SPACE)
    assert drawn() == before
    tab_to(browser, "it.matches('.panels')")
    assert seen()
    press("+", "+", Keys.ARROW_LEFT)
    assert drawn() != before
    press("0")
    assert drawn() == before
    tab_to(browser, "it.tagName === 'SUMMARY'")
    press(Keys.ENTER)
    tab_to(browser, "it.matches('a[href=\"#picture-2\"]')")
    press(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "picture-2"
    assert seen()


def test_promotes_a_version_in_mlflow(servers: Servers, browser: Any, picture: Callable[[str], None]) -> None:
    registry = Registry(servers.mlflow)
    candidate = registry.versions.find("candidate")
    assert (candidate.version, registry.versions.find(PRODUCTION).version) == (2, 1)

    # the candidate's page shows the decision of the gate, images, and measurements beside production's
    browser.get(f"{servers.mlflow}/#/models/microseg-segmenter/versions/2")
    element(browser, "h2, h3", "Gate")
    element(browser, "th", "version 1 (production)")
    pictures = [it for it in browser.find_elements("css selector", "img") if "get-artifact" in it.get_attribute("src")]
    assert len(pictures) == 4
    until(lambda: all(it.get_property("naturalWidth") > 100 for it in pictures), "the pictures")
    assert all(it.size["width"] < 950 for it in pictures)  # whole, beside the page's own panels
    picture("1-candidate")

    # its link opens the decision page among the artifacts of the run, in a frame without access to MLflow
    element(browser, "a", "Decision page").click()
    until(lambda: len(browser.window_handles) == 2, "the tab of the decision page")
    browser.switch_to.window(browser.window_handles[1])
    until(lambda: "/artifacts/evaluation/decision.html" in browser.current_url, "the page of the artifact")
    frame = element(browser, "iframe")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    browser.switch_to.frame(frame)
    assert "candidate for lab_b" in element(browser, "h1").text
    painted = "return [...document.querySelectorAll('figure.picture')].every((it) => it.dataset.ready === 'yes')"
    until(lambda: browser.execute_script(painted), "the pictures of the decision page")
    picture("2-decision-page")
    [zoom, *_] = browser.find_elements("css selector", "figure output")
    before = zoom.text
    element(browser, "[data-do=in]").click()
    assert zoom.text != before
    element(browser, "button", "Whole picture").click()
    assert zoom.text == before
    element(browser, "nav a", "All numbers").click()
    until(lambda: browser.execute_script("return scrollY > 500"), "the numbers of the decision page")
    browser.switch_to.default_content()

    # set the alias, as a person does
    browser.get(f"{servers.mlflow}/#/models/microseg-segmenter/versions/2")
    element(browser, "[title='Edit aliases']").click()
    field = browser.find_element("css selector", "[role=dialog] input")
    field.send_keys("production")
    field.send_keys("\ue007")  # Enter
    picture("3-alias")
    element(browser, "[role=dialog] button", "Save aliases").click()

    with connected(servers) as client:
        until(lambda: runs_of(client, "validate-promotion"), "the run")
        run = ended(client, runs_of(client, "validate-promotion")[0])
    assert run.state.is_completed(), run.state.message
    assert "Version 2 is in production" in run.state.message
    entry = registry.production.history()[0]
    assert (entry.previous_version, entry.version, entry.audit.via, entry.active_version) == (1, 2, "mlflow", 2)
    assert registry.versions.find("previous").version == 1

    browser.get(f"{servers.mlflow}/#/models/microseg-segmenter/versions/2")
    element(browser, "[role=status], span", "production")
    picture("4-promoted")

    # the run in Prefect states the result
    browser.get(f"{servers.prefect}/runs/flow-run/{run.id}")
    element(browser, "body", "validate production")
    picture("5-validate-promotion")


def test_the_onboarding_run_shows_the_candidate(servers: Servers, browser: Any, picture: Callable[[str], None]) -> None:
    with connected(servers) as client:
        run = runs_of(client, "onboard")[0]
        wanted = {"key": {"any_": ["decision"]}, "flow_run_id": {"any_": [str(run.id)]}}
        [artifact] = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted))
    browser.get(f"{servers.prefect}/artifacts/artifact/{artifact.id}")
    element(browser, "body", "Version 2 is the candidate for lab_b.")
    picture("6-decision")

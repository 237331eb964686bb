"""The roofline page in headless Chromium: keyboard, phone, themes, results files, state of GPUs."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = sorted((REPOSITORY / "docs/results").glob("*.jsonl"))
ROOFLINE_A = "[data-panes=roofline] [data-pane=a] .chart"
VIEWS = ["model", "product", "measured", "live"]


def test_keyboard_alone(page):
    page.open()
    active = "return document.activeElement"
    page.press("TAB")
    assert page.js(f"{active}.className") == "skip"
    page.press("ENTER", "TAB")
    assert page.js(f"{active}.name") == "a.hw"
    before = page.text("#tiles")
    page.press("ARROW_DOWN")
    page.wait(lambda: page.text("#tiles") != before)
    wanted = page.js(
        "const reachable = ':is(input, select, textarea, button, summary, [tabindex=\"0\"])';"
        "return [...document.querySelectorAll(`main ${reachable}`)]"
        ".filter((one) => one.checkVisibility() && one.type !== 'hidden').length"
    )
    seen = []
    for _ in range(wanted + 5):
        element = page.js(f"{active}.closest('main') && document.activeElement")
        if element is None:
            break
        seen.append(element)
        outline = page.js("return getComputedStyle(arguments[0]).outlineStyle", element)
        assert outline != "none", element.get_attribute("outerHTML")[:200]
        page.press("TAB")
    assert len(set(seen)) == len(seen) == wanted


@pytest.mark.parametrize("view", VIEWS)
def test_names_and_live_regions(page, view):
    page.open(f"?view={view}&compare=1")
    for control in page.all(f"#view-{view} :is(input, select, textarea, button), #theme"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert len(page.all("h1")) == 1
    assert page.one(f"[data-view={view}]").get_attribute("aria-current") == "page"
    if view == "model":
        page.wait(
            lambda: "bound by" in page.js("return document.querySelector('#status[role=status]').textContent")
        )


@pytest.mark.parametrize("view", VIEWS)
def test_phone(page, view):
    page.size(360, 740, mobile=True)
    page.open(f"?view={view}&compare=1&a.model=own")
    if view == "measured":
        page.one("#m-file").send_keys(str(RESULTS[0]))
        page.wait(lambda: page.all("#m-table tbody tr"))
    for chart in page.all(f"#view-{view} .chart"):
        if chart.is_displayed():
            page.wait(lambda chart=chart: chart.get_attribute("data-drawn"))
    assert page.js("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    page.screenshot(f"phone-{view}")


def luminance(page, colour: str) -> float:
    """Of a custom property's colour, by the definition of WCAG 2."""
    script = (
        "const probe = document.body.appendChild(document.createElement('i'));"
        "probe.style.color = arguments[0]; const found = getComputedStyle(probe).color; probe.remove();"
        "return found.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    )
    channels = [value / 255 for value in page.js(script, f"var(--{colour})")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def chart_ink(page) -> float:
    """How light the text of a chart is, 0 to 255."""
    page.wait(lambda: page.drawn(ROOFLINE_A))
    colour = page.js("return document.querySelector(arguments[0]).layout.font.color", ROOFLINE_A)
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def test_light_and_dark(page):
    page.open()
    for choose, dark in [(None, False), ("system", True), ("light", False), ("dark", True)]:
        if choose == "system":
            page.prefer("dark")
        elif choose:
            page.one(f"#theme option[value={choose}]").click()
        ground = luminance(page, "surface")
        assert (ground < 0.1) == dark
        page.wait(lambda dark=dark: (chart_ink(page) > 128) == dark, "the chart in the page's colours")
        for colour in ("ink", "ink-soft", "accent", "setup-a", "setup-b", "bad"):
            light, low = sorted([luminance(page, colour), ground], reverse=True)
            assert (light + 0.05) / (low + 0.05) >= 4.5, (choose, colour)
        page.screenshot(f"model-{'dark' if dark else 'light'}")
    page.open()
    assert page.one("html").get_attribute("data-theme") == "dark", "the choice is kept"
    page.one("#theme option[value=auto]").click()


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_results_file(page, results):
    page.open("?view=measured")
    page.one("#m-file").send_keys(str(results))
    page.wait(lambda: page.all("#m-table tbody tr"))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    # What the calculator has no prediction for is named, with its reason.
    records = [line for line in lines if line.get("weight_dtype", "model") == "model"]
    assert len(page.all("#m-table tbody tr")) == len(records)
    assert str(len(records)) in page.text("#m-tiles")
    assert len(page.all("#m-table .reasons li")) == len(lines) - len(records)
    measured, predicted = (
        page.traces("#m-roofline", "measured")[0],
        page.traces("#m-roofline", "predicted")[0],
    )
    assert len(measured["x"]) == len(records) and measured["x"] == predicted["x"]
    page.screenshot(f"measured-{results.stem}")


@pytest.mark.usefixtures("refusals")
def test_texts_of_files_are_not_run(page, tmp_path):
    attack = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script>"
    record = json.loads(RESULTS[0].read_text().splitlines()[0])
    hostile = tmp_path / "<img src=x onerror=window.attacked=1>.jsonl"
    lines = [record, {**record, "status": "skipped", "reason": attack, "version": attack}]
    hostile.write_text("".join(json.dumps(line | {"benchmark_name": attack}) + "\n" for line in lines))
    page.open("?view=measured")
    page.one("#m-file").send_keys(str(hostile))
    page.wait(lambda: attack[:20] in page.text("#view-measured"))
    hostile.write_text(f"{attack}\n")
    page.open("?view=measured")
    page.one("#m-file").send_keys(str(hostile))
    page.wait(lambda: page.all("#m-drop .problem"))
    assert page.js("return window.attacked ?? 0") == 0
    assert not page.all("main :is(img, script)")


def test_without_a_gpu(page):
    page.open("?view=live")
    page.wait(lambda: page.text("#l-state").startswith("No GPU"))
    assert not page.one("#l-body").is_displayed()
    page.screenshot("live-no-gpu")


def test_live_gpus(page):
    gpu = {
        "index": 0,
        "name": "<b>GPU</b>",
        "utilization_pct": 37,
        "memory_used_mb": 1000,
        "memory_total_mb": 80000,
    }
    gpu |= {"temperature_c": 50, "power_w": 300, "sm_clock_mhz": 1980, "mem_clock_mhz": 2619, "pstate": "P0"}
    source = """
      window.sources = [];
      window.EventSource = class extends EventTarget {
        constructor(path) { super(); this.path = path; window.sources.push(this); }
        close() { this.closed = true; }
      };"""
    send = "window.sources[0].dispatchEvent(new MessageEvent('message', {data: arguments[0]}))"
    with page.script_before_page(source):
        page.open("?view=live")
        utilizations = [37, None, *range(20, 90, 2), 90]
        for utilization in utilizations:
            state = {"available": True, "gpus": [gpu | {"utilization_pct": utilization}]}
            page.js(send, json.dumps(state))
        assert "<b>GPU</b>" in page.text("#l-table") and "90 %" in page.text("#l-table")
        page.wait(lambda: page.drawn("#l-chart"))
        page.wait(lambda: page.js("return document.querySelector('#l-chart').data[0].y") == utilizations)
        page.screenshot("live")
        page.one("[data-view=model]").click()
        page.wait(lambda: page.js("return window.sources[0].closed"))

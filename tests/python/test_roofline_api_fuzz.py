"""kvfuse.roofline.server against what schemathesis makes of its own description: no answer is a 5xx."""

import json
import zlib

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from kvfuse import roofline
from kvfuse.roofline import server
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SLOWEST_SECONDS = 2
EXAMPLES = {GenerationMode.POSITIVE: 50, GenerationMode.NEGATIVE: 30}

SCHEMA = schemathesis.openapi.from_dict(server.create_app(server.Settings(measure=False)).openapi())
OPERATIONS = [
    one.ok()
    for one in SCHEMA.get_all_operations()
    if one.ok().path != "/api/nvml/stream"  # never ends
]
NAMES = {
    "hardware": [*roofline.HardwareRegistry().names(), "B10"],
    "profile": ["vendor"],
    "model": roofline.model_names(),
    "precision": [one.name for one in roofline.precisions()],
    "strategy": [one.name for one in roofline.strategies()],
    "phase": ["decode", "prefill", "auto"],
}
answered: dict[int, int] = {}


def sensible_value(name, value, number):
    if name in NAMES:
        return NAMES[name][number % len(NAMES[name])]
    if name == "precisions" and isinstance(value, list):
        return [NAMES["precision"][(number + each) % 7] for each in range(len(value))]
    if isinstance(value, list):
        return [sensible_value(name, one, number) for one in value]
    if isinstance(value, dict):
        return {key: sensible_value(key, one, number) for key, one in value.items()}
    if isinstance(value, float) and value.is_integer():  # schemathesis writes 1.0 for 1
        return int(value) % 4096 + 1
    return value % 4096 + 1 if type(value) is int and value > 4096 else value


def sensible(body, takes_model):
    """Two of three bodies get names that exist and sizes within reach: not all are to be refused."""
    if not isinstance(body, dict):
        return body
    number = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    if number % 3 == 0:
        return body
    changed = {name: value for name, value in body.items() if name != "model_config"}
    if takes_model:
        changed["model"] = "named"
    changed = {name: sensible_value(name, value, number) for name, value in changed.items()}
    return changed


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
@pytest.mark.parametrize("mode", EXAMPLES, ids=lambda mode: mode.name.lower())
def test_no_request_breaks_the_server(live, operation, mode):
    takes_a_body = bool(operation.body)
    if not takes_a_body and mode is GenerationMode.NEGATIVE:
        pytest.skip("takes nothing that could be wrong")

    @settings(
        max_examples=EXAMPLES[mode],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        if takes_a_body and mode is GenerationMode.POSITIVE:
            case.body = sensible(case.body, operation.path.endswith(("/predict", "/recommend", "/kv")))
        response = case.call(base_url=live.url)
        answered[response.status_code] = answered.get(response.status_code, 0) + 1
        assert response.elapsed < SLOWEST_SECONDS
        case.validate_response(response, checks=CHECKS)

    ask()


def test_there_were_a_thousand(live):
    """Of all the requests above, many were refused and many answered."""
    assert live.process.poll() is None
    assert sum(answered.values()) >= 1000, answered
    assert answered[200] >= 200, answered
    assert answered[422] >= 200, answered
    assert not [status for status in answered if status >= 500]

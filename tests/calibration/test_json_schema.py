"""The schema that other programs read is the one that we write by."""

from __future__ import annotations

from batchcal.calibration.json_schema import PATH, generate, render
from batchcal.calibration.seal import seal
from batchcal.core.canonical import JSON, loads
from tests.support.calibrations import a_calibration


def test_the_packaged_json_schema_matches_the_generated_schema() -> None:
    assert PATH.read_bytes() == render(), "run: python -m batchcal.calibration.json_schema"


def test_the_json_schema_describes_every_field_that_is_written() -> None:
    written = loads(seal(a_calibration().model_dump(mode="json"), key=None))
    assert isinstance(written, dict)
    schema = generate()
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)

    unknown = sorted(_unknown(written, schema, definitions))

    assert unknown == []
    required = schema["required"]
    assert isinstance(required, list)
    assert set(map(str, required)) <= written.keys()


def _unknown(value: JSON, schema: JSON, definitions: dict[str, JSON], place: str = "$") -> set[str]:
    """Places of objects in `value` whose fields no branch of `schema` describes."""
    assert isinstance(schema, dict)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _unknown(value, definitions[reference.rpartition("/")[2]], definitions, place)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(branches, list):
        return min((_unknown(value, branch, definitions, place) for branch in branches), key=len)
    found: set[str] = set()
    if isinstance(value, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict):
            for name, inner in value.items():
                found |= (
                    _unknown(inner, properties[name], definitions, f"{place}.{name}")
                    if name in properties
                    else {f"{place}.{name}"}
                )
        elif "additionalProperties" not in schema:
            found.add(place)
    if isinstance(value, list):
        items = schema.get("items")
        for number, inner in enumerate(value if items is not None else []):
            found |= _unknown(inner, items, definitions, f"{place}[{number}]")
    return found

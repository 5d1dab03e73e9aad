"""JSON schema of calibration.json, for programs in other languages. Generated, and shipped as `calibration.schema.json`.

Run `python -m batchcal.calibration.json_schema` to write it again after a change of the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from batchcal.calibration.schema import FORMAT, Calibration
from batchcal.calibration.seal import ALGORITHM
from batchcal.core.canonical import JSON, dumps

PATH: Final = Path(__file__).with_name("calibration.schema.json")


def generate() -> dict[str, JSON]:
    """Return the schema of the file: the calibration with its seal. Fields of later versions are allowed everywhere."""
    schema: dict[str, JSON] = Calibration.model_json_schema(mode="serialization")
    properties, required = schema["properties"], schema["required"]
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    signature: JSON = {
        "type": "object",
        "properties": {
            "algorithm": {"const": ALGORITHM},
            "key_id": {"type": "string"},
            "value": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
        "required": ["algorithm", "key_id", "value"],
    }
    properties["digest"] = {
        "type": "string",
        "pattern": "^sha256:[0-9a-f]{64}$",
        "description": "Over the document without this field, keys sorted, no blanks, UTF-8.",
    }
    properties["signature"] = {
        "anyOf": [signature, {"type": "null"}],
        "description": "Over the document without `digest` and `signature`, the same way; null: not signed.",
    }
    schema["required"] = [*required, "digest", "signature"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"batchcal calibration, format {FORMAT}"
    return schema


def render() -> bytes:
    """Return the bytes of the shipped file."""
    return dumps(generate())


if __name__ == "__main__":
    PATH.write_bytes(render())

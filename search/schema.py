"""Write the JSON Schema of config files: `python -m search.schema` (done whenever a key changes)."""

import json

from search.study import SCHEMA_FILE, schema


def text() -> str:
    """What `configs/schema.json` must hold."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(text(), encoding="utf-8")

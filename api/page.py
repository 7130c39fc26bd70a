"""A result as one HTML file that needs nothing else: charts (ECharts, inlined), every number in a table as well."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from vit.files import write_text

HERE = Path(__file__).parent


def write_page(path: Path, name: str, charts: dict[str, Any], **values: Any) -> None:
    """Render `templates/NAME.html` with `static/NAME.js` and write it atomically.

    Args:
        charts: JSON document for the script; numbers that are not finite become null.
        values: for the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    static = HERE / "static"
    scripts = [static / "vendor" / "echarts" / "echarts.min.js", static / "charts.js", static / f"{name}.js"]
    page = environment.get_template(f"{name}.html").render(
        values,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        charts=_script_json(charts),
        scripts=[script.read_text(encoding="utf-8") for script in scripts],
    )
    write_text(path, page)


def _script_json(document: object) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(_finite(document), allow_nan=False).replace("<", "\\u003c")


def _finite(document: object) -> object:
    """JSON has no word for infinity."""
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document

"""The description of the REST interface as one plain page: no script, nothing from elsewhere."""

import html
import json
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


def docs_page(schema: dict[str, Any]) -> str:
    """Return `schema` (OpenAPI 3.1) as HTML."""
    routes = [
        _route(method, path, operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
        if method in _METHODS
    ]
    models = [_model(name, model) for name, model in schema.get("components", {}).get("schemas", {}).items()]
    title = html.escape(schema["info"]["title"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/login.css">
</head>
<body>
<article>
<h1>{title}</h1>
<p>{html.escape(schema["info"].get("description", ""))}</p>
<p>Machine-readable: <a href="/api/v1/openapi.json">/api/v1/openapi.json</a></p>
{"".join(routes)}
<h2>Shapes</h2>
{"".join(models)}
</article>
</body>
</html>
"""


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    about = html.escape(operation.get("description") or operation.get("summary", ""))
    parameters = "".join(
        f"<li><code>{html.escape(p['name'])}</code> ({html.escape(p['in'])}) {_type(p.get('schema', {}))}</li>"
        for p in operation.get("parameters", [])
    )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    replies = "".join(
        f"<li>{html.escape(status)}: {_reply(reply)}</li>"
        for status, reply in operation.get("responses", {}).items()
        if status.startswith("2")
    )
    return (
        f"<section><h3><code>{method.upper()} {html.escape(path)}</code></h3><p>{about}</p>"
        + (f"<ul>{parameters}</ul>" if parameters else "")
        + (f"<p>Body: {_type(body)}</p>" if body else "")
        + f"<p>Returns</p><ul>{replies}</ul></section>"
    )


def _reply(reply: dict[str, Any]) -> str:
    content = reply.get("content", {})
    schema = content.get("application/json", {}).get("schema")
    if schema:
        return _type(schema)
    return html.escape(", ".join(content) or reply.get("description", ""))


def _model(name: str, model: dict[str, Any]) -> str:
    required = set(model.get("required", ()))
    fields = "".join(
        f"<li><code>{html.escape(field)}</code>{'' if field in required else ' (optional)'}: {_type(schema)}</li>"
        for field, schema in model.get("properties", {}).items()
    )
    about = html.escape(model.get("description", ""))
    return f'<section id="{html.escape(name)}"><h3>{html.escape(name)}</h3><p>{about}</p><ul>{fields}</ul></section>'


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(str(schema["$ref"]).rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema:
        return html.escape(" | ".join(json.dumps(value) for value in schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    about = f" ({html.escape(schema['description'])})" if "description" in schema else ""
    return html.escape(str(schema.get("type", "any"))) + about

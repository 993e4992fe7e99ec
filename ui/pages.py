"""The page for signing in. No inline script or style, so that a strict Content-Security-Policy holds."""

import html

from ui.theme import stamp


def login_page(project: str, *, next_path: str = "/", notice: str = "") -> str:
    """Return the sign-in page of the workspace named `project`.

    `next_path` is where the browser goes afterwards: anything but a path on this server becomes `/`.
    """
    version = stamp()
    target = next_path if _is_local(next_path) else "/"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in · {html.escape(project)}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/login.css?v={version}">
<script type="module" src="/static/login.js?v={version}"></script>
</head>
<body>
<main>
<h1>{html.escape(project)}</h1>
<form id="login" method="post" data-next="{html.escape(target)}">
<label for="username">Name</label>
<input id="username" name="username" data-testid="login-name" autocomplete="username" autocapitalize="none"
       spellcheck="false" maxlength="120" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" data-testid="login-password" autocomplete="current-password"
       maxlength="1024" required>
<p id="notice" data-testid="login-error" role="alert">{html.escape(notice)}</p>
<button type="submit" data-testid="login-submit">Sign in</button>
</form>
<p id="kept" hidden></p>
<noscript><p>This page needs JavaScript.</p></noscript>
</main>
</body>
</html>
"""


def _is_local(path: str) -> bool:
    """Tell a path on this server from `//elsewhere`, `https://…` and what browsers read as one of them."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and not any(c in path for c in "\t\r\n\\")

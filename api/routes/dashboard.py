"""The dashboard: pages that know nothing themselves. Their scripts ask the public interface under /v1, as anybody may.

No page, style or script comes from elsewhere, and none is written into a page: the content security policy allows
neither. The pages hold no data, so they need no key; what they ask for does.
"""

from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

HERE = Path(__file__).parents[1]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again, and answered by 304 where nothing changed
}

PAGES = {
    "explore": ("/", "Explore", "Latency against quality: every budget at once"),
    "architecture": ("/architecture", "Architecture", "One architecture, block by block"),
    "tables": ("/tables", "Tables", "What latencies rest on"),
    "jobs": ("/jobs", "Jobs", "Work that takes longer than a request"),
    "studies": ("/studies", "Studies", "Searches over what has no closed form"),
    "runs": ("/runs", "Runs", "Training and pruning, step by step"),
}
"""Template -> path, name and what it is for."""

router = APIRouter(include_in_schema=False)


@lru_cache
def _page(name: str) -> bytes:
    import jinja2  # a service that nobody looks at does without

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    _, title, purpose = PAGES[name]
    page = environment.get_template(f"dashboard_{name}.html").render(
        pages=PAGES, page=name, title=title, purpose=purpose
    )
    return page.encode()


def _add(name: str, path: str) -> None:
    async def show() -> HTMLResponse:
        return HTMLResponse(_page(name), headers=HEADERS)

    router.add_api_route(path, show, methods=["GET"], response_class=HTMLResponse, name=f"dashboard {name}")


for _name, (_path, _, _) in PAGES.items():
    _add(_name, _path)


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def install(app: FastAPI) -> None:
    """Pages at `/`, their files under `/static`."""
    app.include_router(router)
    app.mount("/static", _Static(directory=HERE / "static"), name="static")

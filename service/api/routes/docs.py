"""`/docs`, from assets that are shipped with the service: no page loads anything from elsewhere."""

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The interactive documentation."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Rebound",
        swagger_js_url="/assets/swagger-ui-bundle.js",
        swagger_css_url="/assets/swagger-ui.css",
        swagger_favicon_url="/assets/favicon.png",
    )

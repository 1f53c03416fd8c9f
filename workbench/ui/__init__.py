"""The app in the browser: `build_app(session).launch(**LAUNCH)`."""

from workbench.ui.build import LAUNCH, build_app

__all__ = ["LAUNCH", "build_app"]

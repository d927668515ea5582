"""What a process need not import: Ray starts dozens, and each pays for what it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("serve_apps.app, serve_apps.recommend_app", "torch"),  # gateways and indexes
        ("rec.recipes.content, rec.runtime.embed", "transformers"),  # drivers and controllers
    ],
)
def test_light_processes_load_no_heavy_library(modules: str, without: str) -> None:
    code = f"import sys, {modules}; sys.exit({without!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{without} was imported"

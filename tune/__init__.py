"""Hyper-parameter search on Ray Tune."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see jobs/__init__.py

"""Command-line jobs, one a step; each also runs under `ray job submit`."""

import os

# OpenMP's threads spin while they wait. With as many as cores and anything else running, a step
# of training took twenty times as long; read when torch is loaded, inherited by Ray's workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

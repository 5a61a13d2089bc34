"""Settings that gunicorn reads when it is started in this folder."""

import os
import secrets

# Made once, before the workers start: a session that one has signed must be good for the others. Set it yourself to
# keep sessions over a restart.
os.environ.setdefault("SECRET_KEY", secrets.token_hex())

worker_class = "gowsev.gunicorn.Worker"
workers = 4
graceful_timeout = 10

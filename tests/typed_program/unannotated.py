"""A handler without annotations: what an editor with pyright in it knows of its arguments. It is read, never run.

mypy knows nothing of methods without annotations, and has no say here.
"""

# mypy: ignore-errors
# pyright: basic

from typing import assert_type

import gowsev
from gowsev.testing import Recorder


class Echo(gowsev.Handler):
    def ConnRequested(self, context, request):
        assert_type(request, gowsev.Request)
        return None

    def ConnAccepted(self, context, id):
        assert_type(context.MustConn(id).path, str)

    def ConnClosed(self, context, id):
        assert_type(id, int)

    def EventLoopTimeout(self, context):
        assert_type(context, gowsev.Context)

    def MessageReceived(self, context, id, message):
        assert_type(context, gowsev.Context)
        assert_type(message, bytes)

    def TextReceived(self, context, id, text):
        assert_type(context, gowsev.Context)
        assert_type(text, str)


class Noting(Recorder[Echo]):
    def MessageReceived(self, context, id, message):
        assert_type(context, gowsev.Context)
        assert_type(message, bytes)

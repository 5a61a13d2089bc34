"""RFC 6455 and RFC 7692 as bytes: frames, messages and compression, without I/O.

Nothing here knows gevent, a socket or a clock.
"""

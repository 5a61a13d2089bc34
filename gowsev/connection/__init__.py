"""One socket after its opening handshake: what is read, what waits to be sent, and how it ends."""

"""How a socket becomes a connection: listening, HTTP, the opening handshake, adoption and dialling."""

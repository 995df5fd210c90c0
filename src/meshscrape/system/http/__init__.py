"""A small HTTP/1.1 client and server that stream, with limits."""

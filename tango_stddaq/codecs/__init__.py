"""Bytes in, objects out: the formats on the wire. No sockets."""

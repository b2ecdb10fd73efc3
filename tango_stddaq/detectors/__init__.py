"""What is known of each detector: packet layout, geometry, sizes. Pure: no sockets, files, Tango.

A new detector is one module here plus one line in `registry.py`.
"""

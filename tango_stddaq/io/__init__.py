"""The only place that opens sockets, files and shared memory."""

"""The only place that opens sockets, files and shared memory."""

from tango_stddaq.compiled_code import set_cache_directory

set_cache_directory()

"""Pure processing: assembling and synchronizing. No sockets, files, shared memory or Tango."""

from tango_stddaq.compiled_code import set_cache_directory

set_cache_directory()

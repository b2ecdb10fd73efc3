"""Senders of real packets, built from the same layout code as the receivers."""

from tango_stddaq.compiled_code import set_cache_directory

set_cache_directory()

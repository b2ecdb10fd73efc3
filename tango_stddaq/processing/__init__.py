"""Pure processing: assembling and synchronizing. No sockets, files, shared memory or Tango."""

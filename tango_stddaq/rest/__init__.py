"""The REST and WebSocket service: clients of the web in, Tango to the facade out."""

"""What checks an acquisition before it starts and follows it while it runs."""

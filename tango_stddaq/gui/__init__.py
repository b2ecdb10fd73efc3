"""The window of a data acquisition, built on Taurus."""

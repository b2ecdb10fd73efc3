"""Tango classes: thin faces on stages and control, and the bring-up of a whole system."""

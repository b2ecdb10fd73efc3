"""The stage dark-subtraction."""

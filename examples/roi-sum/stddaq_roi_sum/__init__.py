"""The stage roi-sum."""

"""Senders of real packets, built from the same layout code as the receivers."""

"""What is measured, and how to run it; see README.md."""

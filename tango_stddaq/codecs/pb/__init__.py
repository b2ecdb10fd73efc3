"""Code that protoc generated from `proto/`; `make proto` writes it anew."""

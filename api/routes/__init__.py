"""The REST interface, one noun a file."""

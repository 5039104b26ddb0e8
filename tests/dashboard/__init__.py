"""The dashboard in a real browser, and the pictures of it in docs/img."""

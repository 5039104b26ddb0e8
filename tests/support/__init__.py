"""What the tests share: a private MariaDB, the real service as processes, a plain HTTP client."""

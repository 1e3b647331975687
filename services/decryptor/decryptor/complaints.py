"""What is said of a key's password, by whichever module looks at the key; who reads it tells the two apart."""

NEEDS_PASSWORD = "needs a password, and there is none"  # noqa: S105 # an error text
WRONG_PASSWORD = "a private key that its password does not open"  # noqa: S105 # likewise

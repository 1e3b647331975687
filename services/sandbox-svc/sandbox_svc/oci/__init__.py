"""OCI runtime specs, built by functions of their input alone, one module a concern."""

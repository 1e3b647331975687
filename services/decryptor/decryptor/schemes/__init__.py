"""The ways a layer key is wrapped: one module each, with unwrap and wrap as functions of bytes and keys."""

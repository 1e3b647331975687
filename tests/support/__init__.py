"""What root tests are made of: images, a registry, a stack, real clients, and the check that nothing is left."""

"""decryptor: the one process that holds private keys. It has no network, no capabilities and answers in verdicts."""

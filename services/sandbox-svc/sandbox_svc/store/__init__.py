"""What sandbox-svc knows: durable records, the ledger of made things, and the read model that answers lists."""

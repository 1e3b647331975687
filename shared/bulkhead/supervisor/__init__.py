"""`bulkhead up`: the whole stack under one small process that restarts what dies."""

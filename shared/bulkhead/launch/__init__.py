"""How a service is started: with its own user, the capabilities it needs, and no view of what is not its business."""

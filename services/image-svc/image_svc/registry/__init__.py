"""The registry client: which hosts to ask, how to prove who asks, and how to get the bytes."""

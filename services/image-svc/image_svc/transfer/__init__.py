"""Images into the store and out of it other than by a pull to run: archives, other platforms, pushes."""

"""A virtual machine with systemd and control groups of version 2, for what this host cannot show.

`make vm-test` runs the tests in this folder; `python -m vm COMMAND` (with tests/ in PYTHONPATH) boots the machine and
runs one shell command in it. Everything comes from Debian's packages and the clone; the machine itself has no network
but its loopback. `image` makes the disk with Debian, `payload` the one with Bulkhead and the tests, `machine` boots
both and talks to `agent`, which runs inside.
"""

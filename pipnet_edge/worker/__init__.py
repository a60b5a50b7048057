"""A network in a process of its own, wherever that runs: what passes between (protocol), the worker itself (serve), and
how a command starts one and listens to it (call)."""

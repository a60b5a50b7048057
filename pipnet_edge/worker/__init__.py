"""A network in a process of its own, on any machine: the messages (protocol), the worker itself (serve), and how a
command starts a worker and listens to it (call)."""

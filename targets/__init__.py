"""Where the worker runs: this machine, a board over ssh, an emulated one, a predicted one."""

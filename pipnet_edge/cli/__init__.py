"""The command line: a command in each file; they return values, and render prints them."""

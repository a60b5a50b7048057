"""The command line: one command in each file. Commands return values, and render prints them."""

"""What `python -m traces` can do, a file each: `add_to` declares a command, and the function it sets runs it."""

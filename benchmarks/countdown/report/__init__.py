"""What the shipped Countdown checkpoints can do, measured by one command and written into docs/."""

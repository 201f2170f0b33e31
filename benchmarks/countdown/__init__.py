"""The experiment behind docs/countdown.md: how the Countdown models are trained, and what they can do."""

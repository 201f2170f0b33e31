"""Select policies: how many roots answer one prompt, and which of their answers is given."""

"""The report's sections: each says which cells it needs and what they show."""

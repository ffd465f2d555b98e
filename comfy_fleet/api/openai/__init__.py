"""OpenAI's interface to pictures: a model is a stored workflow."""

"""Webhooks: who is told of what, and when a message is sent again."""

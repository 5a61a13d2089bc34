"""The loop's queue, and what is done with an event of it."""

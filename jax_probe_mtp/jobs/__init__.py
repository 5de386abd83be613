"""A file of prompts to a file of answers: killed, resumed, on several processes."""

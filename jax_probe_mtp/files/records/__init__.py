"""What a line of a prompt file may hold, in the forms of several tools."""

"""Says which tensor of a file goes where in our parameters, and how it lies there."""

"""What decoding costs and gives: benches and reports."""
